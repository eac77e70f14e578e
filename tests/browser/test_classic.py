"""The widget on the page of the classic Notebook, with Colab's packages: shown, turned, edited, cancelled."""

import os

import pytest
from host import COLAB, PROMPTS, Book, Lab, other_packages
from usual import Usual

SETUP = """\
%load_ext nbpatch
import time
import warnings
from ipywidgets.widgets import Widget
from nbpatch.engine import frontier
from nbpatch.live import measuring

plain, slow = frontier.Walk, [False]
def walk(*rows, **options):
    time.sleep(0.5 if slow[0] else 0)
    return plain(*rows, **options)
frontier.Walk = walk

def bench():
    (found,) = [one for one in Widget.widgets.values() if type(one).__name__ == "Workbench"]
    return found
"""
CELL = f'%%patch --component z --over "layer head" --direction denoising -o result\n{PROMPTS}'
SLOW = """\
slow[0], frontier.MOST_TOKENS, measuring.QUICK = True, 16, 0
"""


class Classic(Lab):
    """The classic Notebook's page, served by nbclassic, over a kernel with Colab's packages."""

    module = "nbclassic"
    page = "nbclassic/notebooks"
    options = ()

    def __init__(self, folder):
        colab = other_packages("colab", *COLAB)
        super().__init__(folder, first=colab)
        served = other_packages("classic", "nbclassic==1.3.3", "ipython_genutils==0.2.0")
        self.environment["PYTHONPATH"] = os.pathsep.join([str(served), self.environment["PYTHONPATH"]])
        self.environment["JUPYTER_CONFIG_PATH"] = str(colab / "etc" / "jupyter")


class ClassicBook(Book):
    """One notebook on the classic page, which has another way to its kernel and its cells."""

    def wait_for_kernel(self):
        self.page.wait_for_function(
            "() => window.Jupyter?.notebook?.kernel?.is_connected() && window.Jupyter.notebook._fully_loaded",
            timeout=120_000,
        )
        self.page.wait_for_timeout(1000)

    def run(self, index, *, fails=False):
        self.page.evaluate(
            """async index => {
                const cell = Jupyter.notebook.get_cell(index);
                cell.execute();
                while (cell.running || cell.input_prompt_number === '*' || cell.input_prompt_number === null)
                    await new Promise(done => setTimeout(done, 50));
            }""",
            index,
        )
        outputs = self.page.evaluate("index => Jupyter.notebook.get_cell(index).output_area.toJSON()", index)
        errors = [output for output in outputs if output["output_type"] == "error"]
        assert bool(errors) is fails, "\n".join(errors[0]["traceback"]) if errors else "the cell did not fail"

    def said(self, code):
        return self.page.evaluate(
            """code => new Promise(done => {
                let text = '', failed = false, left = 500;
                // The reply may come before what was printed.
                const end = () => text.includes('>>>') || failed || !left-- ? done(text) : setTimeout(end, 20);
                Jupyter.notebook.kernel.execute(code, {
                    shell: {reply: end},
                    iopub: {output: message => {
                        if (message.msg_type === 'stream') text += message.content.text;
                        if (message.msg_type !== 'error') return;
                        failed = true;
                        text += message.content.traceback.join('\\n');
                    }},
                }, {silent: false, store_history: false});
            })""",
            code,
        )

    def cells(self):
        return self.page.evaluate("() => Jupyter.notebook.get_cells().length")


@pytest.fixture(scope="module")
def book(chromium, tmp_path_factory):
    with Classic(tmp_path_factory.mktemp("classic")) as server:
        page = chromium.new_page(viewport={"width": 1300, "height": 1600})
        opened = ClassicBook(server, page, server.write("classic.ipynb", SETUP, CELL, SLOW)).open()
        opened.run(0)
        opened.run(1)
        opened.part("nbp-heatmap").wait_for(timeout=30_000)
        yield opened
        page.close()


def test_it_is_the_classic_page_with_the_packages_of_colab(book):
    versions = "[__import__(one).__version__ for one in ('IPython', 'ipykernel', 'ipywidgets', 'anywidget')]"
    assert book.python(versions) == ["7.34.0", "6.17.1", "7.7.1", "0.9.21"]
    assert book.page.evaluate("() => typeof window.jupyterapp") == "undefined"


class TestUsual(Usual):
    """What the widget does everywhere."""


def test_a_run_is_cancelled_and_what_was_finished_stays(book):
    book.run(2)
    book.page.evaluate("() => Jupyter.notebook.select(1)")
    book.select("nbp-component", "pattern")
    book.wait_for_text(book.part("nbp-status"), r"^Running: [1-9]")
    book.part("nbp-cancel").click(timeout=30_000)
    book.eventually("bench().status['state']", "cancelled")
    book.wait_for_text(book.part("nbp-status"), r"^Cancelled\. \d+ of \d+ cells kept")
    assert book.python("int((bench().result.data['state'] == 0).sum())") > 0


def test_nothing_went_wrong_on_the_way(book, screens):
    book.page.screenshot(path=screens / "classic.png")
    assert book.strangers() == []
    assert [error for error in book.errors if "page error" in error] == []
