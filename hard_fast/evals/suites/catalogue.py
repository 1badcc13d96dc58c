"""Every suite we know: where it is published, how it lies on disk, what its labels are."""

from hard_fast.data.readers import CIFAR10_FOLDERS, MNIST_FOLDERS
from hard_fast.evals.suites import cifar, digits, folders, imagenet
from hard_fast.evals.suites.suite import Suite

_WNIDS = "WordNet identifiers in sorted order are the network's outputs, as timm lists them"
_TEN = "the network's ten outputs"
_SEEN = ("top1", "top5", "nll", "ece")
_SMALL = ("top1", "nll", "ece")
_OVER_ERRORS = ("corruption_error", *_SMALL)
_V2 = "Recht et al. 2019, arXiv:1902.10811: huggingface.co/datasets/vaishaal/ImageNetV2"


def _v2(name: str, title: str, stem: str) -> Suite:
    folder = f"imagenetv2-{stem}-format-val"
    return Suite(
        name,
        title=f"ImageNet-V2 {title}",
        source=_V2,
        layout=f"{folder}/<0 to 999>/",
        homes=(folder, f"imagenetv2/{folder}", f"imagenetv2-{stem}", f"ImageNetV2/{folder}"),
        labels="the folder's name is the network's output",
        num_classes=1000,
        scores=_SEEN,
        read=imagenet.read_folders,
    )


_SUITES = (
    Suite(
        "mnist",
        title="MNIST test",
        source="LeCun et al.: ossci-datasets.s3.amazonaws.com/mnist",
        layout="mnist/raw/t10k-{images-idx3,labels-idx1}-ubyte, or with .gz",
        homes=MNIST_FOLDERS[::-1],
        labels=_TEN,
        num_classes=10,
        scores=_SMALL,
        read=digits.read_mnist,
    ),
    Suite(
        "mnist_shifted",
        title="MNIST shifted",
        source="MNIST-C's translate, made from MNIST: ossci-datasets.s3.amazonaws.com/mnist",
        layout="mnist/raw/t10k-{images-idx3,labels-idx1}-ubyte, or with .gz",
        homes=MNIST_FOLDERS[::-1],
        labels=_TEN,
        num_classes=10,
        scores=_SMALL,
        read=digits.read_mnist_shifted,
    ),
    Suite(
        "mnist_c",
        title="MNIST-C",
        source="Mu and Gilmer 2019, arXiv:1906.02337: zenodo.org/record/3239543",
        layout="mnist_c/<corruption>/test_{images,labels}.npy",
        homes=("mnist_c", "MNIST-C", "mnist-c", "MNIST_C"),
        labels=_TEN,
        num_classes=10,
        scores=_OVER_ERRORS,
        read=digits.read_mnist_c,
    ),
    Suite(
        "usps",
        title="USPS test",
        source="Hull 1994: csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps",
        layout="usps/usps.h5 (test/data, test/target), usps/usps.t or usps/usps.t.bz2 (LIBSVM)",
        homes=("usps", "USPS", ""),
        labels="digits; LIBSVM's 1 to 10 are 0 to 9",
        num_classes=10,
        scores=_SMALL,
        read=digits.read_usps,
    ),
    Suite(
        "cifar10",
        title="CIFAR-10 test",
        source="Krizhevsky 2009: cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        layout="cifar10/cifar-10-batches-bin/test_batch.bin",
        homes=CIFAR10_FOLDERS[::-1],
        labels=_TEN,
        num_classes=10,
        scores=_SMALL,
        read=cifar.read_cifar10,
    ),
    *(
        Suite(
            name,
            title=f"CIFAR-10.1 {version}",
            source="Recht et al. 2018, arXiv:1806.00451: github.com/modestyachts/CIFAR-10.1",
            layout=f"CIFAR-10.1/datasets/cifar10.1_{version}_{{data,labels}}.npy",
            homes=("CIFAR-10.1/datasets", "CIFAR-10.1", "cifar10.1", "cifar10_1", ""),
            labels=_TEN,
            num_classes=10,
            scores=_SMALL,
            read=cifar.read_cifar10_1,
        )
        for name, version in (("cifar10_1", "v6"), ("cifar10_1_v4", "v4"))
    ),
    Suite(
        "cifar10_c",
        title="CIFAR-10-C",
        source="Hendrycks and Dietterich 2019, arXiv:1903.12261: zenodo.org/record/2535967",
        layout="CIFAR-10-C/<corruption>.npy and labels.npy, the five severities in each",
        homes=("CIFAR-10-C", "cifar10-c", "cifar-10-c", "cifar10_c"),
        labels=_TEN,
        num_classes=10,
        scores=_OVER_ERRORS,
        read=cifar.read_cifar10_c,
    ),
    *(
        Suite(
            name,
            title=title,
            source=source,
            layout="imagenet/val/<WordNet identifier>/, or imagenet/val/ flat beside labels",
            homes=("imagenet", "ImageNet", "imagenet-1k", "ILSVRC2012"),
            labels=labels,
            num_classes=1000,
            scores=scores,
            read=read,
        )
        for name, title, source, labels, scores, read in (
            (
                "imagenet",
                "ImageNet val",
                "Russakovsky et al. 2015, arXiv:1409.0575: image-net.org",
                _WNIDS,
                _SEEN,
                imagenet.read_val,
            ),
            (
                "imagenet_real",
                "ImageNet ReaL",
                "Beyer et al. 2020, arXiv:2006.07159: real.json of google-research/"
                "reassessed-imagenet (or timm's copy) for ImageNet val",
                "sets of outputs by the picture's number",
                ("real",),
                imagenet.read_real,
            ),
        )
    ),
    _v2("imagenet_v2", "matched frequency", "matched-frequency"),
    _v2("imagenet_v2_top", "top images", "top-images"),
    _v2("imagenet_v2_threshold", "threshold 0.7", "threshold0.7"),
    *(
        Suite(
            f"imagenet_{letter}",
            title=f"ImageNet-{letter.upper()}",
            source=source,
            layout=f"imagenet-{letter}/<WordNet identifier>/, 200 of them",
            homes=(f"imagenet-{letter}", f"ImageNet-{letter.upper()}", f"imagenet_{letter}"),
            labels="200 WordNet identifiers; only their outputs compete",
            num_classes=200,
            scores=_SEEN,
            read=imagenet.read_subset,
        )
        for letter, source in (
            (
                "a",
                "Hendrycks et al. 2019, arXiv:1907.07174: hendrycks/natural-adv-examples",
            ),
            ("r", "Hendrycks et al. 2020, arXiv:2006.16241: hendrycks/imagenet-r"),
        )
    ),
    Suite(
        "imagenet_c",
        title="ImageNet-C",
        source="Hendrycks and Dietterich 2019, arXiv:1903.12261: zenodo.org/record/2235448",
        layout="ImageNet-C/<corruption>/<1 to 5>/<WordNet identifier>/",
        homes=("ImageNet-C", "imagenet-c", "imagenet_c", "Imagenet-C"),
        labels=_WNIDS,
        num_classes=1000,
        scores=("mce", *_OVER_ERRORS),
        read=imagenet.read_imagenet_c,
    ),
    Suite(
        "imagenet_sketch",
        title="ImageNet-Sketch",
        source="Wang et al. 2019, arXiv:1905.13549: github.com/HaohanWang/ImageNet-Sketch",
        layout="sketch/<WordNet identifier>/",
        homes=("sketch", "imagenet-sketch/sketch", "ImageNet-Sketch/sketch", "imagenet-sketch"),
        labels=_WNIDS,
        num_classes=1000,
        scores=_SEEN,
        read=imagenet.read_folders,
    ),
    Suite(
        "imagenet_stylized",
        title="Stylized-ImageNet",
        source="Geirhos et al. 2018, arXiv:1811.12231: made by rgeirhos/Stylized-ImageNet",
        layout="stylized-imagenet/val/<WordNet identifier>/",
        homes=("stylized-imagenet/val", "Stylized-ImageNet/val", "stylized_imagenet/val"),
        labels=_WNIDS,
        num_classes=1000,
        scores=_SEEN,
        read=imagenet.read_folders,
    ),
    Suite(
        "pacs",
        title="PACS",
        source="Li et al. 2017, arXiv:1710.03077: domaingeneralization.github.io",
        layout="PACS/<domain>/<class>/ (or PACS/kfold/), 4 domains of 7 classes",
        homes=("PACS", "pacs"),
        labels="seven sorted class names, or a label map",
        num_classes=7,
        scores=_SMALL,
        read=folders.read_pacs,
    ),
    Suite(
        "folder",
        title="folder",
        source="your own pictures",
        layout="<folder>/<class>/",
        homes=("",),
        labels="sorted class folders, or a label map",
        num_classes=None,
        scores=_SEEN,
        read=folders.read_folder,
    ),
)

SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}
