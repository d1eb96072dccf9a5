"""In a conversation each answer is decoded after its own prompt, before the prompt of the next one."""

import numpy as np

from dwellmoe.routing.simulated_cache import _segments


def test_each_answer_follows_its_prompt():
    decode_BT = np.array([[0, 0, 1, 1, 0, 1, 0, 0], [0, 1, 0, 1, 1, 0, 0, 0]], bool)
    valid_BT = np.array([[1] * 7 + [0], [1] * 5 + [0] * 3], bool)
    request_BT = np.array([[3] * 8, [4, 4, 5, 5, 5, 0, 0, 0]])
    found = [
        (each.request, each.row, each.prompt.tolist(), each.decoded.tolist())
        for each in _segments(request_BT, valid_BT, decode_BT)
    ]
    assert found == [
        (3, 0, [0, 1], [2, 3]),
        (3, 0, [4], [5]),
        (3, 0, [6], []),
        (4, 1, [0], [1]),
        (5, 1, [2], [3, 4]),
    ]
