'use strict';
// The order of view keys: null, false, true, numbers, strings (ICU's root collation), arrays, objects.

const strings = new Intl.Collator('en');

function rank(value) {
  if (value === null || value === undefined) return 0;
  switch (typeof value) {
    case 'boolean': return 1;
    case 'number': return 2;
    case 'string': return 3;
    default: return Array.isArray(value) ? 4 : 5;
  }
}

/** Negative, zero or positive if key `a` sorts before, equal to or after key `b`. */
function compareKeys(a, b) {
  if (a === b) return 0;
  const ranks = rank(a) - rank(b);
  if (ranks !== 0) return ranks;
  switch (rank(a)) {
    case 0: return 0;
    case 1: return Number(a) - Number(b);
    case 2: return a - b;
    case 3: return strings.compare(a, b);
    case 4: return compareLists(a, b);
    default: return compareObjects(a, b);
  }
}

function compareLists(a, b) {
  const common = Math.min(a.length, b.length);
  for (let i = 0; i < common; i++) {
    const order = compareKeys(a[i], b[i]);
    if (order !== 0) return order;
  }
  return a.length - b.length;
}

function compareObjects(a, b) {
  const left = Object.entries(a);
  const right = Object.entries(b);
  const common = Math.min(left.length, right.length);
  for (let i = 0; i < common; i++) {
    const order = strings.compare(left[i][0], right[i][0]) || compareKeys(left[i][1], right[i][1]);
    if (order !== 0) return order;
  }
  return left.length - right.length;
}

/** Document ids are compared byte by byte, not by ICU. */
function compareIds(a, b) {
  if (a === b) return 0;
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

module.exports = { compareIds, compareKeys };
