r"""The final answer of a text: the last \boxed{...}, the text after "####", or the text after "the answer is".

Every search takes time linear in the text.
"""

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(\{?)|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"-?\d+(?:[.,]\d+)*|[^\s$]+")
# GSM8K's mark; a heading ("#### Step 2", "#### 1. Count") does not count.
_MARKED = re.compile(r"####[ \t]*+(?![^\w\n\\]{0,9}[a-zA-Z]{2})(?!\d{1,2}[.)][ \t]+[a-zA-Z])(\S[^\n]*)")
_VERB = r"(?:is|was|are|equals|(?:will|would|should|must)\s+be)"
_ANSWER = re.compile(
    r"<answer>|(?:\bfinal\s+|(?:^|\n)[#*_ ]*)answer\b[*_#\s]*\n|"
    rf"\banswer\b[*_\"”']*(?:\s+(?:to|of|for)\b[^.:\n]{{1,80}}?)?(?:\s+{_VERB}\b\s*[:：=]?|\s*[:：=])"
    r"(?:\s*(?:therefore|thus|then|simply|just|clearly|exactly|about|approximately|equal\s+to|given\s+by)\b,?)*",
    re.IGNORECASE,
)
_MATH = r"(?:\$\$.+?\$\$|\$(?!\s)(?:\\\$|[^$\n])*?(?<=[^\s\\])\$(?!\d)|\\\(.+?\\\)|\\\[.+?\\\])"
_MATHS = re.compile(rf"{_MATH}(?:\s*(?:,|;|,?\s*\b(?:and|or)\b)\s*(?:{_MATH}|-?\d+(?:[./]\d+)*))*", re.DOTALL)
_FORMULAS = re.compile(rf"{_MATHS.pattern}|`-?[\d.,/]+`", re.DOTALL)
_BOLD = re.compile(r"(\*\*|__|\*|_)(?=\S)([^\n]+?)\1")
_END_LENGTH = 2000  # characters at a text's end that are searched for its last formula
# The end of an unenclosed answer: the end of its line, sentence or bold text, or the beginning of a remark.
_END = re.compile(
    r"\n|\*\*|</|\.(?=[\s*_]|$)|\s\((?=[a-zA-Z]{2})|"
    r"[,;]?\s{1,2}(?:because|since|as|which|who|when|where|if)\b|[,;]\s{1,2}(?:so|not|but|with)\b"
)
_REMARK = re.compile(r"[,;]\s+(?!(?:and|or)\b)(?=[a-zA-Z]{2})")  # after a number or a formula


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last closed \boxed{...} (or \fbox); None without one."""
    opened: list[int | None] = []  # start of the content of each open brace; None for braces that are not boxes
    last, found = -1, None
    for token in _BRACES.finditer(text):
        if token.group() == "{":
            opened.append(None)
        elif token.group() == "}":
            start = opened.pop() if opened else None
            if start is not None and start > last:
                last, found = start, text[start : token.start()].strip()
        elif token.group(1):
            opened.append(token.end())
        elif token.group(1) == "" and (argument := _UNBRACED.match(text, token.end())):
            last, found = token.end(), argument.group()
    return found


def marked_answer(text: str) -> str | None:
    """Return the rest of the line after the first "####"; None without one. Later text is ignored."""
    found = _MARKED.search(text)
    return found.group(1).strip() if found else None


def stated_answer(text: str) -> str | None:
    """Return the text after the last "the answer is", "Answer:" or similar; None without one."""
    for found in reversed(list(_ANSWER.finditer(text))):
        if answer := _first_answer(text, found.end()):
            return answer
    return None


def _first_answer(text: str, start: int) -> str:
    """Return the answer that begins at `start`: formulas, bold text, or words up to their end."""
    opening = re.compile(r"(?:[\s:“\"}]|[*_]{1,2}(?=\s))*").match(text, start)
    assert opening is not None  # the match may be empty
    start = opening.end()
    if formulas := _MATHS.match(text, start):
        return formulas.group()
    if bold := _BOLD.match(text, start):
        return _first_answer(bold.group(2), 0)
    end = _END.search(text, start)
    answer = text[start : end.start() if end else len(text)]
    formula = re.search(r"[\d\\]", answer)
    if formula and (remark := _REMARK.search(answer, formula.end())):
        answer = answer[: remark.start()]
    return answer.strip("*_`\"”' \t")


def last_formula(text: str) -> str | None:
    """Return the last formula (or number in backquotes) of a text with words before it; None without one.

    This finds answers such as "So we get $13$."; "$1$ or $3$" is an answer itself.
    """
    end = text[-_END_LENGTH:]  # bounds the cost of a formula that is never closed
    formulas = list(_FORMULAS.finditer(end))
    if not formulas or not re.search("[a-zA-Z]{2}", _FORMULAS.sub(" ", end[: formulas[-1].start()])):
        return None
    return formulas[-1].group().strip("`")


def final_answer(text: str) -> str | None:
    """Return a solution's last box, otherwise its marked answer, stated answer or last formula; None without any."""
    for find in (last_boxed, marked_answer, stated_answer, last_formula):
        if (answer := find(text)) is not None:
            return answer
    return None
