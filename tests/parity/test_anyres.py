"""Images cut into tiles that suit their form, packed in reading order with newlines."""

from parity.suite import suite
from parity.test_models import TOWER_AND_DECODER, Architecture

ARCHITECTURES = (
    Architecture(
        "llava-next",
        "llava_next",
        sizes=TOWER_AND_DECODER,
        parameters={None: 7_566_747_648},
        choices=("text.window=null",),
    ),
)
globals().update(suite(ARCHITECTURES))
