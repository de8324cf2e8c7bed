"""Batch norm in a dense Keras network, in front of the activation and behind it.

The programs are Keras' own but for one import. Three networks that differ in batch norm alone learn
handwritten digits with the same high learning rate. (momentum=0.9, because 300 steps are too few
for Keras' 0.99: the running statistics would still be on their way.)
"""

import keras
from keras.layers import Activation, Dense, Input
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from drawing import Line, chart, keep
from normkit.keras import BatchNormalization

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.data.astype("float32") / 16, digits.target, test_size=400, random_state=0
)


def nowhere() -> keras.Model:
    return keras.Sequential(
        [
            Input((64,)),
            Dense(64, activation="sigmoid"),
            Dense(64, activation="sigmoid"),
            Dense(64, activation="sigmoid"),
            Dense(10, activation="softmax"),
        ]
    )


def before_the_activation() -> keras.Model:
    return keras.Sequential(
        [
            Input((64,)),
            Dense(64, use_bias=False),
            BatchNormalization(momentum=0.9),
            Activation("sigmoid"),
            Dense(64, use_bias=False),
            BatchNormalization(momentum=0.9),
            Activation("sigmoid"),
            Dense(64, use_bias=False),
            BatchNormalization(momentum=0.9),
            Activation("sigmoid"),
            Dense(10, activation="softmax"),
        ]
    )


def after_the_activation() -> keras.Model:
    return keras.Sequential(
        [
            Input((64,)),
            Dense(64, activation="sigmoid"),
            BatchNormalization(momentum=0.9),
            Dense(64, activation="sigmoid"),
            BatchNormalization(momentum=0.9),
            Dense(64, activation="sigmoid"),
            BatchNormalization(momentum=0.9),
            Dense(10, activation="softmax"),
        ]
    )


lines = []
for network in (nowhere, before_the_activation, after_the_activation):
    keras.utils.set_random_seed(0)
    model = network()
    sgd = keras.optimizers.SGD(0.5)
    model.compile(sgd, "sparse_categorical_crossentropy", metrics=["accuracy"])
    seen = model.fit(x_train, y_train, epochs=8, validation_data=(x_test, y_test), verbose=0)
    accuracy = seen.history["val_accuracy"]
    name = network.__name__.replace("_", " ")
    print(f"accuracy, batch norm {name}: {accuracy[-1]:.3f}")
    lines.append(Line(name, range(1, 9), accuracy))

keep(chart("Accuracy on digits that were not trained on", "epoch", "accuracy", lines))
