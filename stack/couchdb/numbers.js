'use strict';
// Numbers in JSON. CouchDB stores integers of any length exactly, and refuses numbers beyond the range of a double.
// JavaScript does neither, so an integer that a double cannot represent exactly becomes a string that starts with MARK.

const { CouchError, badRequest } = require('./errors');

const MARK = '\u0000integer:';
const SUSPECT = /\d{16}|\d[eE]\+?\d{3}/; // only such JSON can have a number that a double changes
const MARKED = /"\\u0000integer:(-?\d+)"/g;

function exact(name, value, context) {
  if (typeof value !== 'number' || Number.isSafeInteger(value)) return value;
  const source = context?.source ?? String(value); // Node before 21 has no source
  if (/^-?\d+$/.test(source)) return MARK + source;
  if (!Number.isFinite(value)) throw badRequest('invalid UTF-8 JSON');
  return value;
}

/** Parse JSON as CouchDB does. Throws 400. */
function parse(text) {
  try {
    return SUSPECT.test(text) ? JSON.parse(text, exact) : JSON.parse(text);
  } catch (error) {
    throw error instanceof CouchError ? error : badRequest('invalid UTF-8 JSON');
  }
}

/** Serialize to JSON, with the original integers. */
function stringify(value) {
  const text = JSON.stringify(value);
  return text?.includes('\\u0000integer:') ? text.replaceAll(MARKED, '$1') : text;
}

/** The value for functions of design documents: all integers are numbers. */
function rounded(value) {
  if (typeof value === 'string') return value.startsWith(MARK) ? Number(value.slice(MARK.length)) : value;
  if (value === null || typeof value !== 'object') return value;
  let copy = null; // created if something in it differs
  for (const [name, part] of Object.entries(value)) {
    const number = rounded(part);
    if (number === part) continue;
    copy ??= Array.isArray(value) ? [...value] : { ...value };
    copy[name] = number;
  }
  return copy ?? value;
}

/** Throws CouchDB's error for a document with an integer beyond the range of a double. */
function checkIntegers(value) {
  if (typeof value === 'string') {
    if (value.startsWith(MARK) && !Number.isFinite(rounded(value))) {
      throw new CouchError(500, 'unknown_error', 'badarith');
    }
  } else if (value !== null && typeof value === 'object') {
    Object.values(value).forEach(checkIntegers);
  }
}

module.exports = { checkIntegers, parse, rounded, stringify };
