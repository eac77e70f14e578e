"""What views may ask, by the kind of question."""

from nbpatch.live import cells, circuits
from nbpatch.live.drafts import draft
from nbpatch.live.paths import answer_paths
from nbpatch.live.question import Answer
from nbpatch.live.templates import templates

ANSWERS: dict[str, Answer] = {
    **cells.ANSWERS,
    "circuit": circuits.circuit,
    "draft": draft,
    "faithful": circuits.faithful,
    "paths": answer_paths,
    "templates": templates,
}
