"""What the widget does in every notebook, whoever makes the page: tests for the `book` of a module."""


class Usual:
    """Selected in, turned, edited; Python hears of all of it, and the page around it of no key."""

    def test_a_click_and_keys_select_and_python_hears_of_it(self, book):
        cells = book.cells()
        book.click(2, 3)
        book.eventually("bench().selection", {"layer": 2, "head": 3})
        share = book.python("float(result.share().sel(layer=2, head=3))")
        book.wait_for_text(book.part("nbp-readout"), rf"{abs(share):.2f}")
        book.part("nbp-heatmap").focus()
        book.page.keyboard.press("ArrowUp")
        book.eventually("bench().selection", {"layer": 1, "head": 3})
        for _ in range(2):
            book.page.keyboard.press("d")
        assert book.cells() == cells, "the page took the keys"

    def test_turning_runs_the_other_direction(self, book):
        book.turn("noising")
        book.eventually("bench().result.provenance['direction']", "noising")
        book.eventually("bench().status['state']", "done")

    def test_an_edited_prompt_is_run(self, book):
        text = "When Mary and John went to the store, John gave a book to"
        book.type_into("nbp-clean", text)
        book.type_into("nbp-corrupted", text.replace("John gave", "Mary gave"))
        book.eventually("bench().pairs[0].clean", text)
        book.eventually("bench().status['state']", "done")
