"""An encoder whose output is the states after several of its layers, side by side."""

import pytest
from parity import harness
from parity.suite import suite
from parity.test_models import Architecture

ARCHITECTURES = (Architecture("llava", "llava_multilayer"),)
# Which layers are taken is in the code of a package, so one without a checkpoint is for others.
globals().update(suite(ARCHITECTURES, ["test_package_compiled_without_sizes_loads_any_checkpoint"]))


def test_a_package_for_another_layer_is_refused(shared_folder, tmp_path):
    tiny = harness.tiny_checkpoint(shared_folder, "llava", "llava_multilayer", "plain", 0)
    package = harness.vlmspec.compile("llava", output=tmp_path / "package").load()
    with pytest.raises(ValueError, match=r"vision_feature_layer` is \[-1, -2\]"):
        package.Model.from_pretrained(tiny.folder)


def test_a_layer_that_is_not_there_is_refused(shared_folder):
    tiny = harness.tiny_checkpoint(shared_folder, "llava", "llava_multilayer", "plain", 0)
    config = (tiny.folder / "config.json").read_text()
    other = tiny.folder.with_name("layer-9.json")
    other.write_text(config.replace("-2", "9"))
    with pytest.raises(harness.vlmspec.SpecError, match="layer 9 is asked for"):
        harness.vlmspec.compile("llava", config=other)
