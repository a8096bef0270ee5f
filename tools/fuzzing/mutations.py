"""Broken bytes and broken JSON."""

import copy
import json
import random

INTEGERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 10**9, 2**62]


def mutate_bytes(draw: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """`data` with 1 to 8 common changes; some insert a piece of `other`."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 5, 8))):
        if not data:
            break
        # Half of the places lie in the first 200 bytes, where headers are.
        place = draw.randrange(min(len(data), 200) if draw.random() < 0.5 else len(data))
        length = draw.choice((1, 2, 4, 16, 100, 1000))
        change = draw.randrange(9)
        if change == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif change == 1:
            data[place] = draw.randrange(256)
        elif change == 2:
            size = draw.choice((1, 2, 4, 8))
            value = draw.choice(INTEGERS) % 256**size
            data[place : place + size] = value.to_bytes(size, draw.choice(("little", "big")))
        elif change == 3:
            del data[place : place + length]
        elif change == 4:
            data[place:place] = data[place : place + length] * draw.choice((1, 2, 50))
        elif change == 5:
            data[place:place] = draw.randbytes(length)
        elif change == 6:
            del data[place:]
        elif change == 7:
            start = draw.randrange(len(other)) if other else 0
            data[place : place + length] = other[start : start + length]
        else:
            data[place : place + length] = bytes(len(data[place : place + length]))
    return bytes(data)


class Text(str):
    """Text that is put into the JSON file without quotes."""


def hostile_value(draw: random.Random) -> object:
    """A value that nobody expects in a JSON file."""
    return draw.choice(
        [
            *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e-320, 1e308, 255, 2**31, 2**63, 2**64, 10**30),
            *(float("nan"), float("inf"), -float("inf"), Text("1e999"), Text("1" + 400 * "0"), Text("1" + 5000 * "0")),
            *("", "a", "0", "1", "nan", "right", "none", "float32", "int8", "cuda:7", "é\u20ac", "\ud800", "a\0b", "\n"),
            *("../outside/secret.jpg", "/etc/passwd", "..", ".", "CON", "http://127.0.0.1:9/x", "x" * 5000, "{}"),
            *([], {}, [[]], [None], [[[[]]]], [1], ["a"], [0] * 3, [1] * 5000, {"": {}}, {"a": 1}, {"0": "a"}),
            *(Text("[" * 60 + "]" * 60), Text("[" * 900 + "]" * 900), Text("[" * 100_000 + "]" * 100_000)),
            *(Text('{"a":' * 100_000 + "1" + "}" * 100_000), Text("[" * 100_000), ["a" * 10**6, *["b"] * 3000]),
        ]
    )


def mutate_json(draw: random.Random, value: object, keys: tuple[str, ...] = ()) -> bytes:
    """The JSON text of `value` with 1 to 3 changes of its structure or its bytes. Members named in `keys` may be added."""
    if draw.random() < 0.15:
        return mutate_bytes(draw, json.dumps(value).encode())
    value = [copy.deepcopy(value)]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = []  # containers with their keys or indices

        def visit(node, depth=0, places=places):
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], (dict, list)) and depth < 20:
                    visit(node[key], depth + 1)

        visit(value)
        node, key = draw.choice(places)
        change = draw.randrange(8)
        if change < 3:
            node[key] = hostile_value(draw)
        elif change == 3 and node is not value:
            del node[key]
        elif change == 4:
            other, its_key = draw.choice(places)
            node[key] = copy.deepcopy(other[its_key]) if len(places) < 3000 else None
        elif change == 5 and isinstance(node, dict):
            node[draw.choice(["", "x", "id", *keys])] = hostile_value(draw)
        elif change == 6 and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]) if len(places) < 3000 else hostile_value(draw))
        elif type(node[key]) in (int, float):
            node[key] = draw.choice((-1, 10, 1e3, 1e6, 1e-6, 0.999)) * node[key] + draw.choice((0, 0, 1, -0.5))
        else:
            node[key] = [node[key]] if draw.random() < 0.5 else {"a": node[key]}
    texts: list[str] = []

    def mark(item):  # json quotes every string, so that a `Text` gets a mark, which is replaced afterwards
        if isinstance(item, Text):
            texts.append(item)
            return f"@@{len(texts) - 1}@@"
        if isinstance(item, dict):
            return {key: mark(entry) for key, entry in item.items()}
        return [mark(entry) for entry in item] if isinstance(item, list) else item

    text = json.dumps(mark(value[0]), ensure_ascii=draw.random() < 0.9)
    for index, raw in enumerate(texts):
        text = text.replace(f'"@@{index}@@"', raw)
    return text.encode("utf-8", "surrogatepass")


def json_bomb(draw: random.Random) -> bytes:
    """JSON text that takes many times its size in Python's memory."""
    item = draw.choice((b"[]", b"{}", b'{"":0}', b"1", b'"ab"', b"[[]]", b"1.5"))
    around = draw.choice(((b"[", b"]"), (b'{"images":[],"annotations":[', b"]}"), (b'{"images":[', b"]}")))
    return around[0] + (item + b",") * (draw.choice((10**6, 90 << 20)) // (len(item) + 1)) + item + around[1]
