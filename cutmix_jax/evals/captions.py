"""Captions that NIC writes: COCO's scores, its result file, a page to look at, your photographs."""

import base64
import dataclasses
import hashlib
import io
import json
import pathlib
import sys

import jax
import jinja2
import numpy as np
from PIL import Image

from cutmix_jax.captioning import scores
from cutmix_jax.data.captions import fit
from cutmix_jax.evals import photographs
from cutmix_jax.evals.evaluation import Evaluation, Report
from cutmix_jax.tasks.captioning import SCORES, Captioning, score_captions

LONGEST = 512  # side of a photograph on the page, in pixels


def find_photographs(subject, options):
    """The images of `evals.captions.images`, as `(paths, [(for the network, for the page), ...])`.

    The digest has the references and names of the split, too, which the tokens do not determine.
    """
    task = subject.task

    def prepare(image):
        fitted = fit(image, task.config, task.data.image_shape)
        return fitted, photographs.shrink(image, LONGEST)

    found, digest = photographs.find("captions", options, prepare)
    texts = [digest, task.data.captions[subject.split], names(subject)]
    return found, hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def names(subject):
    """The names of the images of the split; numbers if the data have none."""
    given = subject.task.data.names
    return given[subject.split] if given else [str(i) for i in range(subject.examples)]


def run(subject, options, paths=(), photos=()):
    """The scores of the split, with a page of its best and worst captions."""
    subject = dataclasses.replace(subject, task=searching(subject.task, options))
    task, split = subject.task, subject.split
    references = [list(texts) for texts in task.data.captions[split]]
    written = write(subject, subject.arrays, subject.batches(), subject.examples)
    if jax.process_index() == 0 and not subject.quiet and sys.stderr.isatty():
        print(f"scoring {len(written):,} captions ...", file=sys.stderr, flush=True)
    java = scores.java_available()
    values, each, failure = score_captions(references, written, java)
    missing = failure if java else "there is no Java here."
    ids = names(subject)
    rows = [
        {
            "image": name,
            "caption": caption,
            "cider": float(cider),
            "rouge_l": float(rouge_l),
            "references": " | ".join(" ".join(text.split()) for text in texts),
        }
        for name, caption, cider, rouge_l, texts in zip(
            ids, written, each["cider"], each["rouge_l"], references, strict=True
        )
    ]
    order = np.argsort(each["cider"], kind="stable")
    shown = min(options.shown, len(order))
    best, worst = order[::-1][:shown], order[:shown]
    chosen = np.concatenate([best, worst])
    images = np.uint8(np.rint(255 * subject.images(chosen)["image"]))
    cards = [card(image, rows[i], references[i]) for i, image in zip(chosen, images, strict=True)]
    parts = {"Best by CIDEr": cards[:shown], "Worst by CIDEr": cards[shown:]}
    if photos:
        parts["Photographs"] = describe_photographs(subject, paths, photos)
    table = {SCORES[name]: f"{values[name]:.1f}" if name in values else "-" for name in SCORES}
    results = [
        {"image_id": int(name) if name.isdecimal() else name, "caption": caption}
        for name, caption in zip(ids, written, strict=True)
    ]
    return Report(
        values,
        rows,
        left_out=(f"METEOR: {missing}",) if missing else (),
        again=bool(missing),
        texts={
            "captions.html": page(parts, table, task, split),
            f"captions_{split}_results.json": json.dumps(results, indent=1) + "\n",
        },
    )


def searching(task, options):
    """The task, with the beam search of the options."""
    config = task.config.copy_and_resolve_references()
    for key in ("beam", "length_power"):
        if options[key] is not None:
            config.captions[key] = options[key]
    return dataclasses.replace(task, config=config)


def write(subject, arrays, host_batches, count):
    """The captions of `count` images of some arrays."""
    found = subject.outputs(arrays, host_batches, count, "captions")
    return [subject.task.data.vocabulary.decode(row) for row in found["tokens"]]


def describe_photographs(subject, paths, photos):
    """A card for each photograph of `find_photographs`."""
    task, count = subject.task, len(photos)
    arrays = {
        "image": np.stack([fitted for fitted, _ in photos]),
        "tokens": np.zeros((count, 1, 2), np.int32),
    }
    batches = subject.foreign_batches(count)
    written = write(subject, task.mapping.replicate(arrays), batches, count)
    return [
        {"source": data_url(shown), "name": pathlib.Path(path).name, "caption": caption}
        for path, (_, shown), caption in zip(paths, photos, written, strict=True)
    ]


def card(image, row, references):
    """What the page shows of an image."""
    return {
        "source": data_url(image),
        "name": row["image"],
        "caption": row["caption"],
        "scores": f"CIDEr {row['cider']:.0f}, ROUGE-L {row['rouge_l']:.0f}",
        "references": references,
    }


def data_url(image):
    """An image uint8 `[h, w, 3]` as the source of an HTML element."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def page(parts, table, task, split):
    """One file of HTML that needs no other."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("captions.html").render(
        parts=parts,
        scores=table,
        words=f"NIC on {task.config.model}, split {split} of {task.config.dataset}, "
        f"{task.data.examples[split]:,} images",
    )


EVALUATION = Evaluation(run, find=find_photographs, task=Captioning)
