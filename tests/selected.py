"""What the selected tests ask of a fixture that many share.

``pytest "tests/x.py::test_y[zero2-lora]"`` starts ranks for that case alone, and ``pytest tests/x.py`` starts
them once for all cases.
"""


def parameters(request) -> list[dict]:
    """By selected test with the module's fixture of ``request``: its parameters."""
    return [
        item.callspec.params if hasattr(item, "callspec") else {}
        for item in request.session.items
        if item.path == request.path and request.fixturename in item.fixturenames
    ]


def cases(request, name: str, every: list) -> list:
    """Those of ``every`` case that a selected test has as its parameter ``name``, in their order. A test
    without it asks for all."""
    asked = parameters(request)
    return [case for case in every if any(given.get(name, case) == case for given in asked)]
