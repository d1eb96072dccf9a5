"""Talking with a model without a terminal."""

import io

from dwellmoe.evaluation.chat import chat


def talk(evaluated, lines):
    out = io.StringIO()
    chat(evaluated, 6, lines, out)
    return out.getvalue()


def test_each_reply_shows_what_it_cost(evaluated):
    output = talk(evaluated, ["w1 w2 w3\n", "\n", "w4 w5\n"])
    assert output.count("ECR 0.") == 2 and output.count("LRU hit rate 0.") == 2
    assert "chance 0.250" in output and "2 of 8 experts a layer, cold" in output


def test_ctrl_c_ends_it(evaluated):
    def lines():
        yield "w1\n"
        raise KeyboardInterrupt

    assert talk(evaluated, lines()).endswith("chat ended\n")
