"""Batch norm in a convolutional Keras network.

Conv2D, BatchNormalization, ReLU, pooling: each channel is standardized over all samples and
positions of the batch. The same network without batch norm learns beside it at the same rate.
"""

import keras
from keras.layers import Activation, Conv2D, Dense, Flatten, Input, MaxPooling2D
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from drawing import Line, chart, keep
from normkit.keras import BatchNormalization

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.images[..., None].astype("float32") / 16, digits.target, test_size=400, random_state=0
)


def with_batch_norm() -> keras.Model:
    model = keras.Sequential()
    model.add(Input((8, 8, 1)))
    model.add(Conv2D(16, 3, padding="same", use_bias=False))
    model.add(BatchNormalization(momentum=0.9))
    model.add(Activation("relu"))
    model.add(MaxPooling2D())
    model.add(Conv2D(32, 3, padding="same", use_bias=False))
    model.add(BatchNormalization(momentum=0.9))
    model.add(Activation("relu"))
    model.add(MaxPooling2D())
    model.add(Flatten())
    model.add(Dense(10, activation="softmax"))
    return model


def without() -> keras.Model:
    model = keras.Sequential()
    model.add(Input((8, 8, 1)))
    model.add(Conv2D(16, 3, padding="same", activation="relu"))
    model.add(MaxPooling2D())
    model.add(Conv2D(32, 3, padding="same", activation="relu"))
    model.add(MaxPooling2D())
    model.add(Flatten())
    model.add(Dense(10, activation="softmax"))
    return model


lines = []
for network in (without, with_batch_norm):
    keras.utils.set_random_seed(0)
    model = network()
    sgd = keras.optimizers.SGD(0.05)
    model.compile(sgd, "sparse_categorical_crossentropy", metrics=["accuracy"])
    seen = model.fit(x_train, y_train, epochs=4, validation_data=(x_test, y_test), verbose=0)
    accuracy = seen.history["val_accuracy"]
    name = network.__name__.replace("_", " ")
    print(f"accuracy {name}: {accuracy[-1]:.3f}")
    lines.append(Line(name, range(1, 5), accuracy))

keep(chart("Accuracy on digits that were not trained on", "epoch", "accuracy", lines))
