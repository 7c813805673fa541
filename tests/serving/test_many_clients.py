"""Many clients at once: nothing is lost, nothing is mixed up, and no slot and no memory stays taken."""

import asyncio
import json
import os
import random

import httpx

CLIENTS, REQUESTS = 64, 8


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def whole(mine, body):
    response = await mine.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


async def streamed(mine, body, leave_after=None):
    """The text of a stream; None where the client leaves it after some events."""
    text, seen = "", 0
    async with mine.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                seen += 1
                if seen == leave_after:
                    return None
    return text


def test_answers_are_each_clients_own(server):
    assert server.idle()
    letters = "abcdefghijklmnopqrstuvwxyz "
    rng = random.Random(0)
    prompts = ["".join(rng.choices(letters, k=rng.randrange(1, 60))) for _ in range(40)]
    thresholds = (0.3, 0.5, 0.6)
    expected = {}
    for threshold in thresholds:
        answers = server.team.generate(prompts, max_new_tokens=24, threshold=threshold)
        expected |= {(prompt, threshold): answer.text for prompt, answer in zip(prompts, answers)}
    finished, peaks = [], []

    async def client(number):
        own = random.Random(number)
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as mine:
            for _ in range(REQUESTS):
                prompt, threshold = own.choice(prompts), own.choice(thresholds)
                body = {"prompt": prompt, "threshold": threshold, "max_tokens": 24, "temperature": 0}
                how = own.random()
                if how < 1 / 6:
                    task = asyncio.create_task(whole(mine, body))
                    await asyncio.wait({task}, timeout=own.random() / 5)
                    task.cancel()
                    text = None
                elif how < 1 / 3:
                    text = await streamed(mine, body, leave_after=1)
                elif how < 2 / 3:
                    text = await streamed(mine, body)
                else:
                    text = await whole(mine, body)
                if how >= 1 / 3:
                    assert text == expected[prompt, threshold]
                finished.append(text)
                peaks.append(resident())

    async def everyone():
        await asyncio.gather(*map(client, range(CLIENTS)))

    asyncio.run(everyone())
    assert len(finished) == CLIENTS * REQUESTS and sum(text is not None for text in finished) > CLIENTS * REQUESTS / 2
    assert server.idle() and server.metric("colm_running") == server.metric("colm_waiting") == 0
    half = len(peaks) // 2
    assert max(peaks[half:]) < 1.02 * max(peaks[:half]) + 2**25  # Python's collector runs seldom in tests
