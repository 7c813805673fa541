r"""The answer that a text gives: the last \boxed{...}, what follows "####", or what "the answer is".

Every search is linear in the text, whatever a model wrote.
"""

import re

_BRACES = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(\{?)|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"-?\d+(?:[.,]\d+)*|[^\s$]+")
# GSM8K's mark. A heading ("#### Step 2", "#### 1. Count") is none.
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
_END_LENGTH = 2000  # characters at a text's end in which its last formula is looked for
# Where an answer ends that nothing encloses: at the end of its line, sentence or bold print, or where a remark begins.
_END = re.compile(
    r"\n|\*\*|</|\.(?=[\s*_]|$)|\s\((?=[a-zA-Z]{2})|"
    r"[,;]?\s{1,2}(?:because|since|as|which|who|when|where|if)\b|[,;]\s{1,2}(?:so|not|but|with)\b"
)
_REMARK = re.compile(r"[,;]\s+(?!(?:and|or)\b)(?=[a-zA-Z]{2})")  # behind a number or a formula


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} (or \fbox) that is closed holds; None without one."""
    opened: list[int | None] = []  # where the content of each open brace begins, None for those of no box
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


def marked(text: str) -> str | None:
    """What follows the first "####" on its line; None without one. The text ends there: a base model runs on."""
    found = _MARKED.search(text)
    return found.group(1).strip() if found else None


def said(text: str) -> str | None:
    """What follows the last "the answer is", "Answer:" or the like; None where there is nothing."""
    for found in reversed(list(_ANSWER.finditer(text))):
        if answer := _first_answer(text, found.end()):
            return answer
    return None


def _first_answer(text: str, start: int) -> str:
    """The answer that begins at `start`: formulas, bold print, or words up to where they end."""
    opening = re.compile(r"(?:[\s:“\"}]|[*_]{1,2}(?=\s))*").match(text, start)
    assert opening is not None  # it may be empty
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
    """The last formula (or number in backquotes) of a text that has words before it; None where there is none.

    "So we get $13$." names its answer in no usual way; "$1$ or $3$" is an answer itself.
    """
    end = text[-_END_LENGTH:]  # in which a formula that is never closed costs little
    formulas = list(_FORMULAS.finditer(end))
    if not formulas or not re.search("[a-zA-Z]{2}", _FORMULAS.sub(" ", end[: formulas[-1].start()])):
        return None
    return formulas[-1].group().strip("`")


def answer_of(text: str) -> str | None:
    """The answer of a solution: its last box, else what it marks, else what it says, else its last formula, or None."""
    for find in (last_boxed, marked, said, last_formula):
        if (answer := find(text)) is not None:
            return answer
    return None
