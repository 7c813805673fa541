r"""Normalise the LaTeX of an answer, and split it into parts."""

import re

OPENING, CLOSING = "([{⦃⟦", ")]}⦄⟧"

_TEXT = r"\\(?:text|textbf|textit|textrm|textsf|mbox|mathrm|mathbf|mathit|operatorname)\s*(?=\{)"
_NORMAL_FORM = tuple(
    (re.compile(pattern), value)
    for pattern, value in (
        (r"\s+", " "),
        (r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # thousands, in LaTeX
        (r"\\begin\s*\{([a-zA-Z]*matrix|array)\}(?:\s*\{[clr| ]*\})?", r"⟦\1:"),
        (r"\\end\s*\{(?:[a-zA-Z]*matrix|array)\}", "⟧"),
        (r"\\\\(?:\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\])?", "\n"),  # end of a matrix row; no other newline remains
        (r"\\\{|\\lbrace(?![a-zA-Z])", "⦃"),
        (r"\\\}|\\rbrace(?![a-zA-Z])", "⦄"),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
        (r"\\[()\[\]]", ""),  # backslashes of \( \) and \[ \]
        (r"\\(?:begin|end)\s*\{(?:aligned|align|gathered|gather|equation|split)\*?\}", ""),
        (r"\\(?:text)?color\s*\{[a-zA-Z]+\}|\\(?:boldsymbol|bm|pmb)(?![a-zA-Z])", ""),
        (r"\{\s*(\\(?:cdot|times))\s*\}", r"\1 "),
        (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"(?<![\w.])(\d+|[a-zA-Z])\s*\^\s*\{\s*1\s*/\s*2\s*\}", r"\\sqrt{\1}"),
        (r"\\[!,;:> ]|~|\\q?quad(?![a-zA-Z])", " "),
        (_TEXT, r"\\text"),
        (r"\\text\{\s*(?i:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?)\s*[:=]?\s*\}", ""),
        (r"\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}", " and "),
        (
            r"(?:\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])|°)"
            r"(?:\s*(?:\\text\{\s*[CF]\s*\}|[CF]\b))?",
            "",
        ),
        (r"\\?[$%]|[€£¥]", ""),
        (r"\\(?:[dtcs]|nice)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×·⋅∗]", "*"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])|≤", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])|≥", r"\\ge "),
        (r"\\(?:lt)(?![a-zA-Z])", "<"),
        (r"\\(?:gt)(?![a-zA-Z])", ">"),
        (r"\\neq(?![a-zA-Z])|≠", r"\\ne "),
        (r"∪", r"\\cup "),
        (r"∈", r"\\in "),
        (r"[−–]", "-"),
        (r"π", r"\\pi "),
        (r"∞", r"\\infty "),
        (r"±", r"\\pm "),
        (r"√\s*(\d*)", lambda root: rf"\sqrt{{{root.group(1)}}}" if root.group(1) else r"\sqrt "),
        (r"²", "^2"),
        (r"³", "^3"),
        (r"\\varnothing(?![a-zA-Z])|∅|⦃\s*⦄", r"\\emptyset "),
        (r"\*\s*(?=[a-zA-Z\\(])|(?<=[a-zA-Z)}])\s*\*", " "),  # implicit product
        (r"([_^])\s*(-?\d+|[a-zA-Z])", r"\1{\2}"),
    )
)


_ARGUMENT, _BRACE = re.compile(r" *(\\[a-zA-Z]+|[^{}]|\{)"), re.compile("[{}]")


def normalised(text: str) -> str:
    r"""Return an answer with macros and spaces normalised, without degree, currency and percent signs.

    A matrix becomes ⟦kind: cells & cells, a newline after each row⟧, and \{ \} become ⦃ ⦄, so that every bracket is one
    character.
    """
    for pattern, value in _NORMAL_FORM:
        text = pattern.sub(value, text)
    return _arguments(text.strip(" *")).removesuffix(".").strip("\n ")


def argument_at(text: str, start: int) -> tuple[str, int]:
    """Return the argument at `start` (a {group}, a command or one character; empty without one) and its end."""
    found = _ARGUMENT.match(text, start)
    if found is None:
        return "", start
    if found.group(1) != "{":
        return found.group(1), found.end()
    depth = 1
    for brace in _BRACE.finditer(text, found.end()):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[found.end() : brace.start()], brace.end()
    return "", start


def _arguments(text: str) -> str:
    r"""Put the arguments of every \frac and \sqrt in braces, as for \frac12, \frac{270}7, \sqrt3."""
    parts, at = [], 0
    for macro in re.finditer(r"\\(frac|sqrt)(?![a-zA-Z])(\s*\[[^\]]*\])?", text):
        if macro.start() < at:
            continue  # inside an argument that is already processed
        parts += [text[at : macro.start()], "".join(macro.group().split())]
        at = macro.end()
        for _ in range(2 if macro.group(1) == "frac" else 1):
            argument, at = argument_at(text, at)
            parts.append("{" + _arguments(argument) + "}")
    return "".join(parts) + text[at:]


def split(text: str, pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Split at matches of the pattern outside all brackets; return the parts and the matches."""
    parts, between, depth, start, last = [], [], 0, 0, 0
    for found in pattern.finditer(text):
        depth += depth_of(text[last : found.start()])
        last = found.start()
        if depth == 0:
            parts.append(text[start : found.start()])
            between.append(found.group())
            start = found.end()
    return [*parts, text[start:]], between


def depth_of(text: str) -> int:
    """Return the number of opening minus closing brackets."""
    return sum((letter in OPENING) - (letter in CLOSING) for letter in text)


def enclosed(text: str) -> bool:
    """Return whether the first and last characters are a matching pair of brackets."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter in OPENING) - (letter in CLOSING)
        if depth == 0:
            return at > 0 and at == len(text) - 1
    return False
