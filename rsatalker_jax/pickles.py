"""Reading pickles made by others, without running anything they name.

A pickle is a program: plain `pickle.load` calls whatever it names. Here a name outside a short list ends the reading, and
the objects that third-party pickles hold (scipy's sparse matrices, chumpy's arrays) become inert stand-ins, so
that neither package is imported and none of their code runs.
"""

import codecs
import collections
import io
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import scipy.sparse

from rsatalker_jax.errors import InputError


class _StandIn:
  """Holds the attributes of a pickled object and does nothing with them."""

  def __setstate__(self, state):
    if not isinstance(state, dict):
      raise pickle.UnpicklingError(f"the state of a {type(self).__name__} is a {type(state).__name__}, not a dict")
    self.__dict__.update(state)


class _ChumpyArray(_StandIn):
  pass


class _SparseCsc(_StandIn):
  pass


class _SparseCsr(_StandIn):
  pass


def _new_stand_in(cls, base=object, state=None):
  """What `copyreg._reconstructor` does (protocols 0 and 1), for stand-ins alone."""
  if not (isinstance(cls, type) and issubclass(cls, _StandIn)) or base is not object:
    raise pickle.UnpicklingError(f"cannot build {cls!r}")
  return cls.__new__(cls)


def _encode_latin1(text, encoding="latin1"):
  """Bytes, as Python 3 writes them in protocols 0 to 2; other codecs are refused (some decompress or evaluate)."""
  if encoding != "latin1":
    raise pickle.UnpicklingError(f"codec {encoding!r}")
  return codecs.latin_1_encode(text)[0]


_ALLOWED = {
    "numpy": {"ndarray": np.ndarray, "dtype": np.dtype},
    # The functions that numpy's own pickles name, taken from what it writes, since its module names change.
    "numpy.core.multiarray": {
        "_reconstruct": np.zeros(1).__reduce__()[0],
        "scalar": np.float32(0).__reduce__()[0],
    },
    "numpy.core.numeric": {"_frombuffer": np.zeros(1).__reduce_ex__(5)[0]},
    "_codecs": {"encode": _encode_latin1},
    "copyreg": {"_reconstructor": _new_stand_in},
    "builtins": {"object": object, "set": set},
    "collections": {"OrderedDict": collections.OrderedDict},
    "chumpy.ch": {"Ch": _ChumpyArray},
    "scipy.sparse.csc": {"csc_matrix": _SparseCsc},
    "scipy.sparse.csr": {"csr_matrix": _SparseCsr},
}
# Today's, older and Python 2's names of the same modules.
_RENAMED = {
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "scipy.sparse._csc": "scipy.sparse.csc",
    "scipy.sparse._csr": "scipy.sparse.csr",
    "copy_reg": "copyreg",
    "__builtin__": "builtins",
}


class _AllowListUnpickler(pickle.Unpickler):
  allowed = _ALLOWED

  def find_class(self, module, name):
    try:
      return self.allowed[_RENAMED.get(module, module)][name]
    except KeyError:
      raise pickle.UnpicklingError(f"the name {module}.{name}, which is not on the allow-list") from None


def load_pickle(path: str | os.PathLike) -> object:
  """Reads a pickle of plain containers, numbers, strings, numpy arrays, scipy sparse matrices and chumpy arrays.

  Python 2's pickles are read as latin1, as FLAME's files need. Use `to_array` on what it returns.

  Raises:
    InputError: the file is missing, cut off, no pickle, or names anything else (nothing of it has been executed).
  """
  try:
    with open(path, "rb") as file:
      data = file.read()
  except OSError as error:
    raise InputError(path, "", error.strerror or error, "a readable pickle") from None
  try:
    return _AllowListUnpickler(io.BytesIO(data), encoding="latin1").load()
  except Exception as error:  # A malformed pickle can raise almost anything.
    expected = "a pickle of numpy, scipy.sparse and chumpy arrays in plain containers"
    raise InputError(path, "", str(error) or type(error).__name__, expected) from None


_TORCH_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "BoolStorage": np.bool_,
}


def _rebuild_tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
  """A strided view of a storage, copied; numpy's own checks would not notice a view that leaves it."""
  del requires_grad, hooks, metadata
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= len(storage)):
    raise pickle.UnpicklingError(f"a tensor {tuple(size)} that reaches beyond its {len(storage)} numbers")
  strides = [step * storage.itemsize for step in stride]
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


class _TorchUnpickler(_AllowListUnpickler):
  """Reads the pickle inside a PyTorch archive; the numbers lie in files beside it."""

  allowed = {
      "collections": {"OrderedDict": collections.OrderedDict},
      "torch": _TORCH_STORAGES,
      "torch._utils": {
          "_rebuild_tensor_v2": _rebuild_tensor,
          "_rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
      },
  }

  def __init__(self, file, archive: zipfile.ZipFile, folder: str):
    super().__init__(file)
    self._archive, self._folder = archive, folder

  def persistent_load(self, pid):
    _, dtype, key, _, count = pid
    return np.frombuffer(self._archive.read(f"{self._folder}/data/{key}"), dtype, count)


def load_torch_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads a state dict that PyTorch (1.6 or newer) saved, `pytorch_model.bin`, without PyTorch: tensors by name.

  Raises:
    InputError: the file is missing, cut off, of another kind, or names anything but tensors.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
      unpickler = _TorchUnpickler(io.BytesIO(archive.read(index)), archive, index.removesuffix("/data.pkl"))
      tensors = unpickler.load()
    if not isinstance(tensors, dict) or not all(isinstance(value, np.ndarray) for value in tensors.values()):
      raise pickle.UnpicklingError(f"a {type(tensors).__name__} of other things than tensors")
  except Exception as error:  # A malformed archive or pickle can raise almost anything.
    expected = "a state dict saved by PyTorch 1.6 or newer"
    raise InputError(path, "", str(error) or type(error).__name__, expected) from None
  return dict(tensors)


def to_array(value: object) -> np.ndarray:
  """The dense numpy array inside one value of a pickle read here.

  Raises:
    ValueError: there is none.
  """
  try:
    if isinstance(value, _ChumpyArray):
      return np.asarray(value.x)
    if isinstance(value, (_SparseCsc, _SparseCsr)):
      matrix = scipy.sparse.csc_matrix if isinstance(value, _SparseCsc) else scipy.sparse.csr_matrix
      shape = value.__dict__.get("_shape") or value.__dict__.get("shape")
      return matrix((value.data, value.indices, value.indptr), shape=shape).toarray()
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(f"an incomplete {type(value).__name__.strip('_')}: {error}") from None
  array = np.asarray(value)
  if array.dtype == object:
    raise ValueError(f"a {type(value).__name__} that is no array of numbers")
  return array
