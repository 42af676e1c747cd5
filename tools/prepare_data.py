#!/usr/bin/env python
"""Make a COCO JSON that a search can run on, from a folder in another form.

    python tools/prepare_data.py bccd SOURCE_FOLDER OUT
    python tools/prepare_data.py voc VOC_FOLDER [--split trainval] --output train.json
    python tools/prepare_data.py yolo IMAGES [--labels LABELS] --classes data.yaml --output train.json

bccd takes a clone of github.com/Shenggan/BCCD_Dataset and writes OUT/train.json, OUT/val.json and
OUT/images; the other two leave the pictures where they are. Nothing is ever overwritten. How each form
is read, and what is dropped, is in docs/DATASETS.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from crnas_d2.data.prepared import Prepared, Record
from crnas_d2.data.voc import add_voc_images, read_annotations, read_voc
from crnas_d2.data.yolo import read_yolo
from crnas_d2.errors import InputError, run_tool
from crnas_d2.files import write_text

SHOWN = 3  # of the boxes that were dropped or clipped

BCCD_COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
BCCD_IMAGES, BCCD_BOXES = 364, 4886  # of that commit
BCCD_CLASSES = ("RBC", "WBC", "Platelets")
BCCD_URL = "https://github.com/Shenggan/BCCD_Dataset"
# Photographs that show one field, shifted or refocused: they were found by correlating small copies.
BCCD_PAIRS = """
    00019-00020 00037-00038 00204-00276 00204-00277 00205-00276 00206-00278 00223-00263
    00224-00264 00226-00261 00227-00260 00228-00259 00229-00258 00230-00257 00231-00256
    00232-00255 00233-00254 00236-00253 00237-00252 00239-00240 00242-00249 00243-00250
    00244-00247 00248-00249 00377-00400 00381-00397 00382-00395 00384-00393 00386-00391
"""


def bccd_fields() -> dict[str, str]:
    """For each photograph of a pair the first by name that shows its field, over several pairs too."""
    first: dict[str, str] = {}
    for pair in BCCD_PAIRS.split():
        joined = {first.setdefault(number, number) for number in pair.split("-")}
        first = {number: min(joined) if f in joined else f for number, f in first.items()}
    return first


def read_bccd(source: Path) -> tuple[Prepared, dict[str, Record]]:
    """All of the source, and the contents of train.json and val.json.

    Every fifth photograph by name is val, and those of a field follow its first.
    """
    prepared = Prepared.of_classes(BCCD_CLASSES, supercategory="cell")
    add_voc_images(prepared, source / "BCCD", read_annotations(source / "BCCD"))
    found = len(prepared.images), len(prepared.annotations)
    if found != (BCCD_IMAGES, BCCD_BOXES):
        raise InputError(
            f"{source}: {found[0]} photographs, {found[1]} boxes: commit {BCCD_COMMIT[:7]} with "
            f"{BCCD_IMAGES} and {BCCD_BOXES} is needed (git checkout {BCCD_COMMIT})"
        )
    numbers, fields = [Path(image["file_name"]).stem[-5:] for image in prepared.images], bccd_fields()
    for image, number in zip(prepared.images, numbers):
        image.update(license=1, field=fields.get(number, number))
    licence = {"id": 1, "name": "MIT", "url": f"{BCCD_URL}/blob/master/LICENSE"}
    info = {"description": "BCCD (blood cells), converted from VOC xml", "url": BCCD_URL}
    contents = {}
    for split in ("train", "val"):
        images = [i for i in prepared.images if (i["field"] in numbers[::5]) == (split == "val")]
        ids = {image["id"] for image in images}
        annotations = [a for a in prepared.annotations if a["image_id"] in ids]
        contents[split] = content_of(prepared, info, images, annotations)
        contents[split]["licenses"] = [licence]
    return prepared, contents


def write_bccd(contents: dict[str, Record], pictures: Path, out: Path) -> None:
    """In one go: until everything is there it has another name."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        (folder / "images").mkdir(parents=True)
        for split, content in contents.items():
            for image in content["images"]:
                shutil.copyfile(pictures / image["file_name"], folder / "images" / image["file_name"])
            write_text(folder / f"{split}.json", json.dumps(content))
        folder.rename(out)


def content_of(
    prepared: Prepared, info: Record, images: list[Record], annotations: list[Record]
) -> Record:
    parts = {"images": images, "annotations": annotations}
    return {"info": info, "categories": prepared.categories, **parts}


def describe(path: Path, content: Record) -> None:
    """Print what a JSON holds."""
    images, annotations = content["images"], content["annotations"]
    empty = len({image["id"] for image in images} - {a["image_id"] for a in annotations})
    counts = Counter(annotation["category_id"] for annotation in annotations)
    classes = [f"{category['name']} {counts[category['id']]}" for category in content["categories"]]
    masks = sum("segmentation" in annotation for annotation in annotations)
    print(f"{path}: {len(images)} images ({empty} without objects), {len(annotations)} boxes")
    print(f"    {len(classes)} classes: {', '.join(classes)}")
    if masks:
        print(f"    {masks} boxes have a polygon")


def describe_rest(prepared: Prepared) -> None:
    """Print what is not in the JSON, or not as it was."""
    for places, what in (
        (prepared.dropped, "boxes without area were dropped"),
        (prepared.clipped, "boxes reached more than a pixel beyond their picture and were cut off"),
    ):
        print(f"{len(places)} {what}{':' if places else ''}")
        for place in places[:SHOWN]:
            print(f"    {place}")
        if len(places) > SHOWN:
            print("    ...")
    for note in prepared.notes:
        print(note)


def keys(side: str, json_file: Path, images: Path) -> str:
    files = shlex.quote(str(json_file)), shlex.quote(str(images))
    return f"DATASETS.{side}_JSON {files[0]} DATASETS.{side}_IMAGES {files[1]}"


def check_output(option: str, output: Path, is_folder: bool = False) -> None:
    if not is_folder and output.suffix != ".json":
        raise InputError(f"{option}: {output}: a name that ends in .json is needed")
    if output.exists() or output.is_symlink():
        raise InputError(f"{option}: {output}: is there already; remove it, or give another name")
    if not output.absolute().parent.is_dir():
        raise InputError(f"{option}: {output}: {output.absolute().parent}: no such folder")


def prepare_bccd(args: argparse.Namespace) -> None:
    check_output("OUT", args.out, is_folder=True)
    prepared, contents = read_bccd(args.source)
    write_bccd(contents, args.source / "BCCD" / "JPEGImages", args.out)
    for split, content in contents.items():
        describe(args.out / f"{split}.json", content)
    describe_rest(prepared)
    print(f"{args.out / 'images'}: {len(prepared.images)} photographs")
    print("next: python search_net.py --config-file configs/BCCD/search.yaml OUTPUT_DIR output/bccd \\")
    print(f"    {keys('TRAIN', args.out / 'train.json', args.out / 'images')} \\")
    print(f"    {keys('TEST', args.out / 'val.json', args.out / 'images')}")


def prepare_one(args: argparse.Namespace) -> None:
    """One JSON, of a folder in the layout of VOC or YOLO."""
    check_output("--output", args.output)
    if args.form == "voc":
        images, description = args.folder / "JPEGImages", f"Pascal VOC, {args.split or 'all'}"
        prepared = read_voc(args.folder, args.split)
    else:
        images, description = args.images, "YOLO labels"
        prepared = read_yolo(images, args.labels, args.classes)
    info = {"description": description}
    content = content_of(prepared, info, prepared.images, prepared.annotations)
    write_text(args.output, json.dumps(content))
    describe(args.output, content)
    describe_rest(prepared)
    print(f"next, to search on it: {keys('TRAIN', args.output, images)}")
    print(f"or to test on it: {keys('TEST', args.output, images)}")
    print("as KEY VALUE ... of python search_net.py --config-file configs/OwnData/r50.yaml \\")
    print("    OUTPUT_DIR output/mine MODEL.CRNAS.WEIGHTS resnet50.pth KEY VALUE ...")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    forms = parser.add_subparsers(dest="form", required=True)
    bccd = forms.add_parser("bccd", help="a clone of github.com/Shenggan/BCCD_Dataset")
    bccd.add_argument("source", type=Path, metavar="SOURCE_FOLDER", help="the clone; it holds BCCD/")
    bccd.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    bccd.set_defaults(prepare=prepare_bccd)
    voc = forms.add_parser("voc", help="Annotations/*.xml, JPEGImages/*, ImageSets/Main/SPLIT.txt")
    voc.add_argument("folder", type=Path, metavar="VOC_FOLDER")
    voc.add_argument("--split", help="a list in ImageSets/Main; default: all XML files")
    yolo = forms.add_parser("yolo", help="pictures, and a text file with labels for each")
    yolo.add_argument("images", type=Path, metavar="IMAGES", help="a folder, with all below it")
    yolo.add_argument("--labels", type=Path, help="default: IMAGES with labels in place of images")
    yolo.add_argument("--classes", type=Path, required=True, help="data.yaml, or one name a line")
    for one in (voc, yolo):
        one.add_argument("--output", type=Path, required=True, help="a new .json file")
        one.set_defaults(prepare=prepare_one)
    args = parser.parse_args()
    args.prepare(args)


if __name__ == "__main__":
    run_tool(main)
