"""Systems that are a tower, a projector and a decoder put together in another way."""

from parity.suite import suite
from parity.test_models import TOWER_AND_DECODER, Architecture

ARCHITECTURES = (
    Architecture(
        "bakllava",
        "bakllava",
        sizes=TOWER_AND_DECODER,
        parameters={None: 7_566_743_552, "7b-original": 7_566_219_264},
    ),
    Architecture("mantis", "mantis", sizes=TOWER_AND_DECODER, parameters={None: 8_480_007_232}),
)
globals().update(suite(ARCHITECTURES))
