"""The text of one answer while it is written: a piece for each token, up to a stop."""

from collections.abc import Collection, Sequence

from colm_jax.text.detokenizer import Detokenizer, TokenBytes
from colm_jax.text.stop_strings import StopStrings


class GeneratedText:
    """The text of the tokens after a prompt, in time linear in their number.

    Joined, the pieces are the text; a character that spans several tokens is in the piece of the token that completes
    it. A stop string is complete at the token that completes it, and the text ends where it begins; a stop token ends
    the text before itself.
    """

    def __init__(
        self,
        tokens: TokenBytes,
        prompt: Sequence[int] = (),
        stops: Sequence[str] = (),
        stop_token_ids: Collection[int] = (),
    ):
        """Starts after the prompt; `stops` are not empty strings."""
        self._tokens, self._stop_ids = tokens, frozenset(stop_token_ids)
        self._detokenizer = Detokenizer(tokens, prompt)
        self._stops = StopStrings(stops)
        self._ends: list[int] = []  # of each piece in the text
        self._settled = 0
        self._finished = False
        self.pieces: list[str] = []  # what each token adds
        self.stopped = False

    def extend(self, tokens: Sequence[int]) -> None:
        """Append an answer's next tokens.

        Those after a complete stop are ignored: `len(pieces)` tokens are the answer's.
        """
        for token in tokens:
            if self.stopped:
                return
            if token in self._stop_ids:
                self._complete()
                self.pieces.append("")
                self.stopped = True
                return
            special = self._tokens.special(token)
            piece = self._detokenizer.push(token)
            self.pieces.append(piece)
            self._ends.append((self._ends[-1] if self._ends else 0) + len(piece))
            self._stop_at(self._stops.push(piece, special))

    def finish(self) -> None:
        """End the text: a character that was not completed is shown as U+FFFD."""
        if not self.stopped and not self._finished:
            self._complete()
        self._finished = True

    @property
    def text(self) -> str:
        """All pieces, joined."""
        return "".join(self.pieces)

    def settled(self) -> int:
        """Return how many tokens' pieces no later token can change."""
        if self.stopped or self._finished:
            return len(self.pieces)
        bound = self._stops.settled
        count = len(self.pieces) - self._detokenizer.pending
        while self._settled < count and self._ends[self._settled] <= bound:
            self._settled += 1
        return self._settled

    def _complete(self) -> None:
        """Close a character that no token completed; its replacement belongs to the last token."""
        if self.pieces and (rest := self._detokenizer.flush()):
            self.pieces[-1] += rest
            self._ends[-1] += len(rest)
            self._stop_at(self._stops.push(rest))

    def _stop_at(self, length: int | None) -> None:
        """Cut the text to its first characters, where a stop string begins; None: it continues."""
        if length is not None:
            self.stopped = True
            self.pieces = cut(self.pieces, length)


def cut(pieces: Sequence[str], length: int) -> list[str]:
    """Return the pieces of a text's first `length` characters; those beyond are empty."""
    found = []
    for piece in pieces:
        found.append(piece[: max(0, length)])
        length -= len(piece)
    return found
