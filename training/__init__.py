"""Preferences in; a trained, normalised, evaluated reward model out, exported as a bundle.

The story, `pipeline.train`:

    groups   = data.read_groups(file)                prompts with their responses and comparisons
    model    = checkpoint.begin(base)                a backbone and one scalar head
    fit.fit(model, groups)                           every completion once, loss.py, one epoch
    mean     = normalize.reference_mean(rewards)     so that the reference completions average 0
    report   = evaluate.evaluate(held_out, rewards)  accuracy, calibration, length bias, intervals
    report.page.write(report)                        report.json, report.html
    bundle   = export.export(run)                    ONNX, golden scores, proof
"""
