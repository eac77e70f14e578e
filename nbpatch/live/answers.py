"""What views may ask, by the kind of question."""

from nbpatch.live import circuits
from nbpatch.live.paths import answer_paths
from nbpatch.live.question import Answer

ANSWERS: dict[str, Answer] = {
    "circuit": circuits.circuit,
    "faithful": circuits.faithful,
    "paths": answer_paths,
}
