"""The part of Caffe's file format that weights need, as a protobuf schema made at run time.

Made from descriptors in a pool of its own: no generated module that ties us to a version of protobuf, and
no quarrel with a Caffe that is loaded in the same process. The layer type is a plain number, so that types
that no public schema knows (42, the mean-field layer of the CRF-RNN) are as good as any other. Fields that
are not listed are kept as unknown ones and written again.

Field numbers: caffe.proto of BVLC Caffe, messages NetParameter, V1LayerParameter, LayerParameter, BlobProto;
for the parameters of the mean-field layer that of the Caffe which came with the CRF-RNN, where they are
field 44 of a layer, and of its ports to newer ones, where they are field 147.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_PACKAGE = "napari_crfasrnn_caffe"
# message: {field: (number, type, repeated)}; a type in capitals is a message of ours
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "BlobShape": {"dim": (1, "int64 packed", True)},
    "BlobProto": {
        "num": (1, "int32", False),
        "channels": (2, "int32", False),
        "height": (3, "int32", False),
        "width": (4, "int32", False),
        "data": (5, "float packed", True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, "double packed", True),
    },
    "MultiStageMeanfieldParameter": {
        "theta_alpha": (3, "float", False),
        "theta_beta": (4, "float", False),
        "theta_gamma": (5, "float", False),
        "num_iterations": (6, "uint32", False),
    },
    "V1LayerParameter": {
        "name": (4, "string", False),
        "type": (5, "int32", False),
        "blobs": (6, "BlobProto", True),
        "multi_stage_meanfield_param": (44, "MultiStageMeanfieldParameter", False),
    },
    "LayerParameter": {
        "name": (1, "string", False),
        "type": (2, "string", False),
        "blobs": (7, "BlobProto", True),
        "multi_stage_meanfield_param": (147, "MultiStageMeanfieldParameter", False),
    },
    "NetParameter": {
        "name": (1, "string", False),
        "layers": (2, "V1LayerParameter", True),
        "layer": (100, "LayerParameter", True),
    },
}


@cache
def net_parameter(*, numbers_as_bytes: bool = False) -> Any:
    """Return the message class of a whole file.

    Parameters
    ----------
    numbers_as_bytes
        Whether the numbers of a blob are handed out as the bytes they are in the file: a hundred million
        numbers then come without becoming Python objects. The two look the same in a file, as long as
        the numbers are packed, which Caffe always does.

    Raises
    ------
    ImportError
        If protobuf is not installed.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}{int(numbers_as_bytes)}.proto", package=_PACKAGE, syntax="proto2"
    )
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            field = described.field.add(name=name, number=number)
            field.label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            base, _, packed = kind.partition(" ")
            if base in _MESSAGES:
                field.type, field.type_name = Field.TYPE_MESSAGE, f".{_PACKAGE}.{base}"
            elif numbers_as_bytes and packed and base in ("float", "double"):
                field.type = Field.TYPE_BYTES
            else:
                field.type = getattr(Field, f"TYPE_{base.upper()}")
                field.options.packed = bool(packed)
                if not packed:
                    field.ClearField("options")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.NetParameter"))
