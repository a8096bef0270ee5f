// Reads the settings that the export writes into an ONNX file. The runtime gives no access to them.

// Numbers of the fields, from onnx.proto: ModelProto.metadata_props, StringStringEntryProto.key and .value.
const METADATA_PROPS = 14;
const KEY = 1;
const VALUE = 2;

/** The fields of a protocol buffers message that hold bytes, as [number, bytes] in their order. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= bytes.length) throw new Error("it ends early");
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      if (at + length > bytes.length) throw new Error("it ends early");
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error(`it has a field of the unknown kind ${kind}`);
  }
}

/**
 * The JSON under `key` in the metadata of an ONNX file.
 *
 * @throws an `Error` that says why, when the file is no ONNX or lacks that entry.
 */
export function readMetadata(bytes, key) {
  const decoder = new TextDecoder();
  for (const [number, entry] of fields(bytes)) {
    if (number !== METADATA_PROPS) continue;
    const texts = Object.fromEntries([...fields(entry)].map(([part, text]) => [part, decoder.decode(text)]));
    if (texts[KEY] === key) return JSON.parse(texts[VALUE]);
  }
  throw new Error(`it has no metadata entry "${key}"`);
}
