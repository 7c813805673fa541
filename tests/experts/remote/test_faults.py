"""Faulty endpoints: what passes is tried again, what does not is said, and nothing waits longer than its deadline."""

import datetime
import ipaddress
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from colm_jax.data.units import TextView
from colm_jax.errors import MachineError, UserError
from colm_jax.experts.protocol import Call
from colm_jax.experts.remote.client import Client, Deadline, Lost
from tests.experts.remote.fake import serving

PROMPT = "a cat and the dog. "
SHORT = {"timeout": 0.4, "deadline": 0.8}
PASSING = ["status 500", "status 503", "status 429 0", "status 429", "status 408", "half", "json", "nan"]


def ask(expert, count=1, first=0):
    """The answers to calls without an answer so far, by sequence."""
    expert.start([Call(first + i, {"prompt": PROMPT}, [], seed=0) for i in range(count)])
    found = {}
    while len(found) < count:
        got = expert.finished(wait=True)
        assert got
        found |= {written.sequence: written for written in got}
    return [found[first + i] for i in range(count)]


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(fault, connect):
    with serving() as server:
        expert = connect(server)
        (plain,) = ask(expert)
        server.faults += [fault, fault]
        before = len(server.asked())
        (found,) = ask(expert, first=1)
        assert len(server.asked()) - before == 3
    assert found.unit == plain.unit and found.unit and not found.lost
    assert (found.requests, found.characters) == (3, 3 * len(PROMPT))


def test_a_time_out_is_tried_again(connect):
    with serving() as server:
        expert = connect(server, timeout=0.3)
        server.faults.append("silence")
        (found,) = ask(expert)
    assert found.unit and found.requests == 2


@pytest.mark.parametrize("fault", [*PASSING, "silence", "drip", "headers", "choices", "lengths"])
def test_a_lost_expert_is_told_within_its_deadline(fault, connect):
    with serving() as server:
        expert = connect(server, **SHORT, retries=2)
        server.faults += [fault] * 20
        start = time.monotonic()
        (found,) = ask(expert)
        assert time.monotonic() - start < 5 * SHORT["deadline"]  # the machine may be slow
    assert found.unit is None and found.lost and "\n" not in found.why and found.why.startswith(server.address)


def test_the_attempts_are_counted(connect):
    with serving() as server:
        expert = connect(server, retries=2)
        server.faults += ["status 502"] * 20
        before = len(server.asked())
        (found,) = ask(expert)
        assert len(server.asked()) - before == 3 == found.requests
    assert found.why.endswith("status 502: later (attempt 3, the last)")


def test_a_longer_wait_than_the_deadline_is_not_waited(connect):
    with serving() as server:
        expert = connect(server, deadline=10)
        server.faults.append("status 429 3600")
        start = time.monotonic()
        (found,) = ask(expert)
        assert time.monotonic() - start < 5
    assert found.lost and "no time for another attempt" in found.why


def test_the_endpoints_wait_is_kept(connect):
    with serving() as server:
        expert = connect(server)
        server.faults.append("status 429 0.3")
        start = time.monotonic()
        (found,) = ask(expert)
        assert time.monotonic() - start >= 0.3
    assert found.unit


@pytest.mark.parametrize("fault", ["choices", "lengths"])
def test_a_bad_answer_is_asked_for_again(fault, connect):
    with serving() as server:
        expert = connect(server)
        server.faults.append(fault)
        (found,) = ask(expert)
        assert found.unit and found.requests == 2
        text = TextView({"prompt": PROMPT}, ("the", " cat"), False)
        (plain,) = expert.score([text], lambda done, total: None)
        server.faults.append(fault)
        (again,) = expert.score([text], lambda done, total: None)
    assert again.log_prob.tolist() == plain.log_prob.tolist()


@pytest.mark.parametrize("fault", ["choices", "status 400", "lengths"])
def test_one_bad_answer_for_a_list_loses_none_of_it(fault, connect):
    with serving() as server:
        expert = connect(server)
        plain = [written.unit for written in ask(expert, 8)]
        server.faults.append(fault)
        found = ask(expert, 8, first=8)
    assert [written.unit for written in found] == plain and not any(written.lost for written in found)
    assert all(written.requests >= 2 for written in found)


def test_a_text_that_is_refused_is_lost_alone(connect):
    with serving(context=60) as server:
        expert = connect(server)
        long = Call(1, {"prompt": PROMPT * 5}, [], seed=0)
        expert.start([Call(0, {"prompt": PROMPT}, [], seed=0), long])
        found = {}
        while len(found) < 2:
            found |= {written.sequence: written for written in expert.finished(wait=True)}
    assert found[0].unit and not found[0].lost
    assert found[1].lost and found[1].why.endswith("status 400: the prompt is longer than the context")


def test_a_model_that_goes_away_is_an_error(connect):
    with serving() as server:
        expert = connect(server)
        server.features.names = ("other",)
        with pytest.raises(UserError, match="status 404: model tiny does not exist"):
            ask(expert)


def test_redirects_to_another_server_are_refused(connect):
    with serving() as other, serving() as server:
        expert = connect(server)
        server.faults.append(f"redirect {other.url}/v1/completions")
        with pytest.raises(UserError, match=r"redirects to another server \(http://127.0.0.1\), which is not followed"):
            ask(expert)
        assert not other.requests


def test_redirects_on_the_same_server_are_followed(connect):
    with serving() as server:
        expert = connect(server)
        server.faults.append("redirect /v1/completions")
        assert ask(expert)[0].unit
        server.faults.append("redirect /v1/completions 302")  # which would make a GET of it
        with pytest.raises(UserError, match="redirects to /v1/completions with status 302"):
            ask(expert, first=1)
        server.faults += ["redirect /v1/completions"] * 9
        with pytest.raises(UserError, match="redirects in a circle"):
            ask(expert, first=2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a key and a certificate of this machine that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now, hosts = datetime.datetime.now(datetime.UTC), [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(key.private_bytes(*form) + builder.sign(key, hashes.SHA256()).public_bytes(form[0]))
    return path


def test_a_certificate_that_is_not_trusted_is_refused(certificate, connect, monkeypatch):
    with serving(certificate=certificate) as server:
        with pytest.raises(UserError, match="its certificate is not trusted"):
            connect(server)
        assert not server.requests
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        expert = connect(server)
        assert expert.name.startswith("https://") and ask(expert)[0].unit


def test_a_server_that_is_not_there(connect):
    with serving() as server:
        pass
    with pytest.raises(UserError, match="is the server running"):
        connect(server, retries=1)


def test_a_lost_expert_stops_scoring_with_the_way_to_resume(connect):
    texts = [TextView({"prompt": PROMPT}, ("the", " cat"), False)]
    with serving() as server:
        expert = connect(server, **SHORT, retries=1)
        server.faults += ["silence"] * 20
        with pytest.raises(MachineError, match="rerun the same command to resume"):
            expert.score(texts, lambda done, total: None)
        with pytest.raises(MachineError, match="rerun the same command to resume"):
            expert.greedy_spans(texts, 2, 0, lambda done, total: None)


def test_a_key_is_sent_and_never_shown(connect, monkeypatch, capsys):
    with serving(key="secret-key") as server:
        with pytest.raises(UserError, match=r"a key is needed; .* environment variable COLM_API_KEY_127_0_0_1 or"):
            connect(server)
        monkeypatch.setenv("COLM_API_KEY", "wrong-key")
        with pytest.raises(UserError, match="a key was not accepted") as raised:
            connect(server)
        assert "wrong-key" not in str(raised.value)
        monkeypatch.setenv("COLM_API_KEY_127_0_0_1", "secret-key")
        expert = connect(server)
        assert ask(expert)[0].unit
        server.features.key = "another"
        with pytest.raises(UserError, match="authentication failed") as raised:
            ask(expert, first=1)
    shown = f"{raised.value} {expert!r} {expert._endpoint.client!r} {expert.name} {capsys.readouterr()}"
    assert "secret-key" not in shown and "wrong-key" not in shown and "another" not in shown


def test_the_key_is_removed_from_an_endpoints_words(monkeypatch, connect):
    with serving() as server:
        monkeypatch.setenv("COLM_API_KEY", "later")  # the words of the fault
        expert = connect(server, retries=0)
        server.faults.append("status 500")
        (found,) = ask(expert)
    assert found.why.endswith("status 500: *** (attempt 1, the last)")


def test_a_deadline_that_has_passed_sends_nothing(connect):
    with serving() as server:
        client: Client = connect(server)._endpoint.client
        before = len(server.requests)
        with pytest.raises(Lost, match="the deadline passed"):
            client.post(f"{server.url}/v1/completions", {}, Deadline.after(-1))
        assert len(server.requests) == before
