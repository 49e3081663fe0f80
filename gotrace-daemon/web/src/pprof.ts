// Reads a profile as pprof has it (github.com/google/pprof, proto/profile.proto): stacks, values and labels.

export interface Sample {
  /** Functions, innermost first. */
  stack: string[];
  values: number[];
  labels: Record<string, string>;
}

export interface Profile {
  samples: Sample[];
  comments: string[];
}

type Field = [field: number, value: number | Uint8Array];

/** The fields of a message. */
function* fields(bytes: Uint8Array): Generator<Field> {
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      if (byte === undefined) throw new Error("the profile is cut off");
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const [field, type] = [Math.floor(key / 8), key % 8];
    if (type === 0) yield [field, varint()];
    else if (type === 2) {
      const length = varint();
      yield [field, bytes.subarray(at, (at += length))];
    } else throw new Error(`the profile has a field of type ${type}`);
  }
}

/** Numbers, packed or one by one. */
function numbers(into: number[], value: number | Uint8Array): void {
  if (typeof value === "number") into.push(value);
  else {
    let number = 0;
    let scale = 1;
    for (const byte of value) {
      number += (byte & 127) * scale;
      scale *= 128;
      if (byte < 128) {
        into.push(number);
        [number, scale] = [0, 1];
      }
    }
  }
}

function object(bytes: Uint8Array): Record<number, number> {
  return Object.fromEntries([...fields(bytes)].filter((field): field is [number, number] => typeof field[1] === "number"));
}

export async function read(gzip: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<Profile> {
  const raw = await new Response(gzip.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const strings: string[] = [];
  const functions = new Map<number, number>();
  const locations = new Map<number, number[]>();
  const samples: { locations: number[]; values: number[]; labels: Record<number, number>[] }[] = [];
  const comments: number[] = [];
  const text = new TextDecoder();
  for (const [field, value] of fields(new Uint8Array(raw))) {
    if (field === 13) numbers(comments, value);
    if (typeof value === "number") continue;
    if (field === 2) {
      const sample = { locations: [] as number[], values: [] as number[], labels: [] as Record<number, number>[] };
      for (const [field, of] of fields(value)) {
        if (field === 1) numbers(sample.locations, of);
        else if (field === 2) numbers(sample.values, of);
        else if (field === 3 && typeof of !== "number") sample.labels.push(object(of));
      }
      samples.push(sample);
    } else if (field === 4) {
      let id = 0;
      const lines: number[] = [];
      for (const [field, of] of fields(value)) {
        if (field === 1 && typeof of === "number") id = of;
        else if (field === 4 && typeof of !== "number") lines.push(object(of)[1] ?? 0);
      }
      locations.set(id, lines);
    } else if (field === 5) {
      const { 1: id = 0, 2: name = 0 } = object(value);
      functions.set(id, name);
    } else if (field === 6) strings.push(text.decode(value));
  }
  const named = (of: number | undefined) => strings[functions.get(of ?? 0) ?? 0] || "?";
  return {
    samples: samples.map(({ locations: ids, values, labels }) => ({
      stack: ids.flatMap((id) => (locations.get(id) ?? []).map(named)),
      values,
      labels: Object.fromEntries(labels.map((label) => [strings[label[1] ?? 0] ?? "", strings[label[2] ?? 0] ?? ""])),
    })),
    comments: comments.map((n) => strings[n] ?? ""),
  };
}
