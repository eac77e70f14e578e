def test_smoke(open_book, screens):
    book = open_book("smoke.ipynb", "import nbpatch as nbp\n%load_ext nbpatch\n1 + 1")
    book.run(0)
    print(book.outputs(0))
    assert book.python("1 + 1") == 2
    book.page.screenshot(path=screens / "smoke.png")
    print(book.errors, len(book.requests), book.strangers())
    assert book.errors == []
    assert book.strangers() == []
