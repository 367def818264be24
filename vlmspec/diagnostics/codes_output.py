"""Codes of config.json, of checkpoints and of what is written: VS4xx and VS5xx."""

OUTPUT_CODES: dict[str, tuple[str, str]] = {
    "VS401": (
        "checkpoint file not found",
        "The folder has no config.json, or no safetensors file. "
        "Give the folder of a complete checkpoint.",
    ),
    "VS402": (
        "not JSON",
        "The file cannot be read as JSON at the marked place. NaN, comments and trailing commas "
        "are not JSON. Correct the file or load it again from where it came.",
    ),
    "VS403": (
        "duplicate key in JSON",
        "An object has the same key twice. Most readers silently keep the last one, so it is not "
        "clear which value is meant. Remove one of the two.",
    ),
    "VS404": (
        "JSON too large",
        "A config.json holds at most 4 MiB and is nested at most 32 deep. "
        "A larger one is most likely another file. Check the path.",
    ),
    "VS405": (
        "unsupported config value",
        "The checkpoint's config asks for something that this description does not build. "
        "The message gives the key, the value and what would be accepted. "
        "Use another description, or extend this one.",
    ),
    "VS406": (
        "checkpoint of another architecture",
        "The `model_type` of config.json is not one that this description reads. "
        "Loading it would give a model that computes something else. "
        "Use the description that lists this `model_type`.",
    ),
    "VS407": (
        "not a safetensors file",
        "Weights are read from safetensors files only. Pickled files (.bin, .pt, .ckpt) can run "
        "code when they are opened, so they are refused. Convert the file to safetensors first.",
    ),
    "VS408": (
        "damaged safetensors header",
        "The header of the file does not describe its content: it is cut off, too large, not "
        "JSON, or its offsets overlap or leave the file. Download the file again.",
    ),
    "VS409": (
        "missing tensors",
        "The model needs tensors that the checkpoint does not hold. The message names the first "
        "of them. Check that the checkpoint is complete and belongs to this description.",
    ),
    "VS410": (
        "unexpected tensors",
        "The checkpoint holds tensors that the model has no place for. Leaving them out could "
        "change what it computes. Use the right description, or extend this one.",
    ),
    "VS411": (
        "tensor of the wrong shape",
        "A tensor of the checkpoint has another shape than the model gives it. "
        "The message names both. Check that config.json and weights belong together.",
    ),
    "VS412": (
        "shard outside the folder",
        "The index file names a shard with an absolute path, with `..` or through a link that "
        "leaves the folder. Such a path could read any file. Correct the index file.",
    ),
    "VS413": (
        "missing shard",
        "The index file names a shard that is not in the folder. The download is most likely "
        "incomplete. Download the checkpoint again.",
    ),
    "VS416": (
        "weight names clash",
        "Two tensors of the model get the same name in the checkpoint, or one name stands for "
        "two. Correct the `weights:` patterns of the parts.",
    ),
    "VS501": (
        "output folder is not ours",
        "The folder exists and holds files that were not written by vlmspec, or were changed "
        "since. They are never overwritten. Choose another folder, or empty this one.",
    ),
    "VS502": (
        "cannot write",
        "The output cannot be written: no permission, no space, or a file stands where a folder "
        "is needed. Nothing was changed. Choose another folder.",
    ),
}
