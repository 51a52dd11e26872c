"""The recipes for many devices, on eight of them."""

import re
from pathlib import Path

import jax

RECIPES = Path(__file__).parents[2] / "RECIPES.md"


def main() -> None:
    assert jax.device_count() == 8
    text = RECIPES.read_text("utf-8")
    (section,) = re.findall(r"(?ms)^## Many devices and FSDP\n(.*?)^## ", text)
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, RECIPES.name, "exec"), {})
    print("recipes that ran:", len(blocks))


if __name__ == "__main__":
    main()
