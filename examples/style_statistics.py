"""Style as channel statistics: instance norm takes them away, another image's are put in.

Contrast and tint of an image are the mean and the deviation of each of its channels. Instance norm
removes them; as gamma and beta the statistics of another image give it that one's look. (Style
transfer does the same to the channels of a network's features: adaptive instance norm, AdaIN.)
"""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

import normkit as nk
from drawing import keep

norm = nk.InstanceNorm(eps=0.0)
photos = [np.asarray(Image.fromarray(photo).resize((240, 160))) for photo in
          load_sample_images().images]  # fmt: skip
images = np.stack(photos).transpose(0, 3, 1, 2) / 255.0  # a temple and a flower, (2, 3, 160, 240)

statistics = norm.moments(images)
mean, deviation = statistics.mean, np.sqrt(statistics.var)  # (2, 3): of each image and channel
for name, means, deviations in zip(("temple", "flower"), mean, deviation, strict=True):
    print(f"{name}: mean of red, green, blue {means.round(3)}, deviation {deviations.round(3)}")

other = [1, 0]  # each image takes the statistics of the other one
swapped, _ = norm.forward(images, gamma=deviation[other], beta=mean[other])
found = norm.moments(swapped)
print(f"largest distance from the other's means: {abs(found.mean - mean[other]).max():.0e}")

# A change of exposure and tint is a change of channel statistics; instance norm does not see it.
plain, _ = norm.forward(images)
faded, _ = norm.forward(images * [[[0.5]], [[0.3]], [[0.4]]] + 0.2)
print(f"largest trace of fading after instance norm: {abs(plain - faded).max():.0e}")

rows = [np.concatenate(list(row), axis=2) for row in (images, swapped)]
pixels = np.clip(np.concatenate(rows, axis=1), 0, 1).transpose(1, 2, 0)
file = io.BytesIO()
Image.fromarray((pixels * 255).round().astype("uint8")).save(file, "JPEG", quality=85)
keep(file.getvalue())  # above as they are, below with the other's statistics
