'use strict';
// Numbers in JSON. CouchDB keeps integers exactly, however long they are, and refuses numbers that no double can hold.
// JavaScript does neither, so an integer that a double does not hold exactly is kept as a text that begins with MARK.

const { CouchError, badRequest } = require('./errors');

const MARK = '\u0000integer:';
const SUSPECT = /\d{16}|\d[eE]\+?\d{3}/; // only such JSON can hold a number that is not kept as it is
const MARKED = /"\\u0000integer:(-?\d+)"/g;

function exact(name, value, context) {
  if (typeof value !== 'number' || Number.isSafeInteger(value)) return value;
  const source = context?.source ?? String(value); // before Node 21 there is no source
  if (/^-?\d+$/.test(source)) return MARK + source;
  if (!Number.isFinite(value)) throw badRequest('invalid UTF-8 JSON');
  return value;
}

/** JSON as CouchDB reads it. Raises 400. */
function parse(text) {
  try {
    return SUSPECT.test(text) ? JSON.parse(text, exact) : JSON.parse(text);
  } catch (error) {
    throw error instanceof CouchError ? error : badRequest('invalid UTF-8 JSON');
  }
}

/** JSON with the integers as they came. */
function stringify(value) {
  const text = JSON.stringify(value);
  return text?.includes('\\u0000integer:') ? text.replaceAll(MARKED, '$1') : text;
}

/** The value as functions of design documents see it: all integers are numbers. */
function rounded(value) {
  if (typeof value === 'string') return value.startsWith(MARK) ? Number(value.slice(MARK.length)) : value;
  if (value === null || typeof value !== 'object') return value;
  let copy = null; // made when something in it differs
  for (const [name, part] of Object.entries(value)) {
    const number = rounded(part);
    if (number === part) continue;
    copy ??= Array.isArray(value) ? [...value] : { ...value };
    copy[name] = number;
  }
  return copy ?? value;
}

/** Raises CouchDB's error for a document with an integer that is beyond every double. */
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
