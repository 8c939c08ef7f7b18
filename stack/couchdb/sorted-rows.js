'use strict';
// The sorted rows of one view, in chunks. Each chunk keeps its own reductions, so that after a write only the changed
// chunks are reduced again, like the inner nodes of CouchDB's B-tree.

const { compareIds, compareKeys } = require('./collation');

const CHUNK = 512; // rows; a chunk with twice this number is split

/** A row is {key, id, value, turn}; turn distinguishes rows of one document with equal keys. */
function compareRows(a, b) {
  return compareKeys(a.key, b.key) || compareIds(a.id, b.id) || a.turn - b.turn;
}

/** The part of a key by which rows are grouped: the whole key at level Infinity, null at level 0. */
function groupKey(key, level) {
  if (level === 0) return null;
  return Array.isArray(key) && key.length > level ? key.slice(0, level) : key;
}

/** The first index below `length` for which `test` is true; `test` must be false, then true. */
function firstIndex(length, test) {
  let low = 0;
  let high = length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (test(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

class Chunk {
  constructor(rows) {
    this.rows = rows;
    this.reductions = new Map(); // group level -> [{key, value}]
  }

  touched() {
    this.reductions.clear();
  }
}

class SortedRows {
  /** `reduce` is (keys, values, rereduce) -> value, or null. The optional `reduce.shown` converts it for responses. */
  constructor(reduce = null) {
    this.reduce = reduce;
    this.chunks = [];
    this.length = 0;
  }

  insert(row) {
    this.length++;
    if (this.chunks.length === 0) {
      this.chunks.push(new Chunk([row]));
      return;
    }
    const at = Math.min(this.#chunkOf(row), this.chunks.length - 1);
    const chunk = this.chunks[at];
    chunk.rows.splice(firstIndex(chunk.rows.length, (i) => compareRows(chunk.rows[i], row) > 0), 0, row);
    chunk.touched();
    if (chunk.rows.length >= 2 * CHUNK) this.chunks.splice(at + 1, 0, new Chunk(chunk.rows.splice(CHUNK)));
  }

  remove(row) {
    const at = this.#chunkOf(row);
    const chunk = this.chunks[at];
    chunk.rows.splice(firstIndex(chunk.rows.length, (i) => compareRows(chunk.rows[i], row) >= 0), 1);
    chunk.touched();
    if (chunk.rows.length === 0) this.chunks.splice(at, 1);
    this.length--;
  }

  /** The index of the first chunk whose last row is not before `row`. */
  #chunkOf(row) {
    return firstIndex(this.chunks.length, (i) => compareRows(this.chunks[i].rows.at(-1), row) >= 0);
  }

  /** The number of rows before the first for which `test` is true; `test` must be false, then true. */
  position(test) {
    const at = firstIndex(this.chunks.length, (i) => test(this.chunks[i].rows.at(-1)));
    let before = 0;
    for (let i = 0; i < at; i++) before += this.chunks[i].rows.length;
    if (at === this.chunks.length) return before;
    const { rows } = this.chunks[at];
    return before + firstIndex(rows.length, (i) => test(rows[i]));
  }

  /** The rows from position `from` up to but not `to`. */
  slice(from, to) {
    const found = [];
    for (const { chunk, start, end } of this.#parts(from, to)) {
      for (let i = start; i < end; i++) found.push(chunk.rows[i]);
    }
    return found;
  }

  /** The reduced value of each group of rows from position `from` up to but not `to`: [{key, value}]. */
  groups(from, to, level) {
    const groups = []; // {key, values: one per chunk}
    for (const { chunk, start, end } of this.#parts(from, to)) {
      for (const { key, value } of this.#groupsOf(chunk, start, end, level)) {
        const last = groups.at(-1);
        if (last && compareKeys(last.key, key) === 0) last.values.push(value);
        else groups.push({ key, values: [value] });
      }
    }
    const shown = this.reduce.shown ?? ((value) => value);
    return groups.map(({ key, values }) => ({
      key, value: shown(values.length === 1 ? values[0] : this.reduce(null, values, true)),
    }));
  }

  #groupsOf(chunk, start, end, level) {
    const whole = start === 0 && end === chunk.rows.length;
    if (whole && chunk.reductions.has(level)) return chunk.reductions.get(level);
    const groups = [];
    for (let i = start; i < end; i++) {
      const key = groupKey(chunk.rows[i].key, level);
      const last = groups.at(-1);
      if (last && compareKeys(last.key, key) === 0) last.rows.push(chunk.rows[i]);
      else groups.push({ key, rows: [chunk.rows[i]] });
    }
    const reduced = groups.map(({ key, rows }) => ({
      key, value: this.reduce(rows.map((row) => [row.key, row.id]), rows.map((row) => row.value), false),
    }));
    if (whole) chunk.reductions.set(level, reduced);
    return reduced;
  }

  * #parts(from, to) {
    let before = 0;
    for (const chunk of this.chunks) {
      const start = Math.max(from - before, 0);
      const end = Math.min(to - before, chunk.rows.length);
      if (start < end) yield { chunk, start, end };
      before += chunk.rows.length;
      if (before >= to) return;
    }
  }
}

module.exports = { SortedRows };
