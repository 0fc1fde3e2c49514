"""Finds objects in pictures with a trained student, and draws them.

Usage: python examples/detect.py runs/trials/KEY pictures/*.jpg --output found
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

import kdr


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", help="student.pt of a trial, or its folder")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--output", default="found", type=Path, help="folder for the drawings")
    parser.add_argument("--min-score", default=0.3, type=float)
    options = parser.parse_args()

    student = kdr.load_student(options.student)
    if torch.cuda.is_available():
        student.to("cuda")
    options.output.mkdir(parents=True, exist_ok=True)
    for path in map(Path, options.images):
        image = pil_to_tensor(Image.open(path).convert("RGB"))
        [found] = student.predict([image], min_score=options.min_score)
        names = [
            f"{name} {score:.2f}"
            for name, score in zip(found.names, found.scores.tolist(), strict=True)
        ]
        print(f"{path.name}: {', '.join(names) or 'nothing'}")
        drawn = draw_bounding_boxes(image, found.boxes_xyxy, names, width=2, colors="orange")
        to_pil_image(drawn).save(options.output / f"{path.stem}.png")


if __name__ == "__main__":
    main()
