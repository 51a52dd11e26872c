"""Which examples hypothesis draws.

`ci`, the profile of every run that names no other, has the same few examples each time.
`long` draws many, and new ones, in search of what the few do not show:

    HYPOTHESIS_PROFILE=long pytest tests/test_properties.py
"""

import os

from hypothesis import settings

# A new shape is compiled first, which takes longer than any sensible deadline.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=6)
settings.register_profile("long", deadline=None, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
