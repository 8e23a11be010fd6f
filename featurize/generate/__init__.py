"""Text-to-image models: files found, parts loaded, images generated.

Files, with nothing loaded: ``presets`` (generators that have a name), ``generator_files`` (folder, one file, hub), ``downloads``,
``folder_check`` (is a folder whole), ``folder_settings`` (its steps and guidance), ``sampler_settings`` (those of ``--scheduler``), and of
all these ``generators``.

Loaded: ``load_part`` (one model, from a folder), ``single_file`` (one model, from a checkpoint), ``lora`` (fused into it), ``tokenizers``,
``schedulers`` (the sampler), and of all these ``parts``.

Images: ``families`` (how each kind of pipeline samples), ``text_to_image`` (the loop), ``decoders``, ``deepcache``, ``acceleration``.
"""
