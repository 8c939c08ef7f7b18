'use strict';
// Reduce functions: (keys as [[key, id], ...] or null, values, rereduce) -> value.

const { CouchError } = require('./errors');
const { compile, context } = require('./javascript');

function add(total, value) {
  if (typeof total === 'number' && typeof value === 'number') return total + value;
  if (Array.isArray(value) || Array.isArray(total)) {
    const [left, right] = [[].concat(total), [].concat(value)];
    return Array.from({ length: Math.max(left.length, right.length) }, (_, i) => add(left[i] ?? 0, right[i] ?? 0));
  }
  if (value && typeof value === 'object' && (total === 0 || (total && typeof total === 'object'))) {
    const sums = { ...(total || {}) };
    for (const name of Object.keys(value)) sums[name] = add(sums[name] ?? 0, value[name]);
    return sums;
  }
  throw new CouchError(500, 'builtin_reduce_error',
    'The _sum function requires that map values be numbers, arrays of numbers, or objects.');
}

/** For numbers only; CouchDB also accepts arrays of numbers. One invalid value breaks the whole view, as in CouchDB. */
function stats(values) {
  const numbers = values.map((value) => {
    if (typeof value === 'number') return { sum: value, count: 1, min: value, max: value, sumsqr: value * value };
    if (value && typeof value.sumsqr === 'number') return value;
    throw new CouchError(500, 'invalid_value',
      'The _stats function requires that map values be numbers or arrays of numbers');
  });
  return numbers.reduce((a, b) => ({
    sum: a.sum + b.sum,
    count: a.count + b.count,
    min: Math.min(a.min, b.min),
    max: Math.max(a.max, b.max),
    sumsqr: a.sumsqr + b.sumsqr,
  }));
}

/** The sum of the values. If there is none, CouchDB responds with 200 and the error in place of the value. */
function sum(values) {
  try {
    return values.reduce(add, 0);
  } catch (error) {
    if (error instanceof CouchError) return { error: error.error, reason: error.reason };
    throw error;
  }
}

/** Exact, while CouchDB estimates. A reduction is the set of keys; its size is the result. */
function distinct(keys, values, rereduce) {
  return new Set(rereduce ? values.flatMap((set) => [...set]) : keys.map(([key]) => JSON.stringify(key)));
}
distinct.shown = (set) => set.size;

const BUILT_IN = {
  _approx_count_distinct: distinct,
  _count: (keys, values, rereduce) => (rereduce ? sum(values) : values.length),
  _sum: (keys, values) => sum(values),
  _stats: (keys, values) => stats(values),
};

/** The reduce function of a view, from its source or the name of a built-in function. */
function reducer(source, designDocument, what) {
  const text = source.trim();
  if (!text.startsWith('_')) return compile(text, context(designDocument), what);
  if (!Object.hasOwn(BUILT_IN, text)) {
    throw new CouchError(400, 'invalid_design_doc', `\`${text}\` is not a supported reduce function.`);
  }
  return BUILT_IN[text];
}

module.exports = { reducer };
