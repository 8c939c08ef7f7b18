'use strict';
// Functions of design documents: compiled once, each design document's in a context of its own.

const vm = require('node:vm');
const { CouchError } = require('./errors');

function log() {}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/** The context in which functions of `designDocument` run; `extra` are further globals, such as emit. */
function context(designDocument, extra = {}) {
  const toJSON = (value) => JSON.stringify(value);
  const globals = vm.createContext({ log, sum, isArray: Array.isArray, toJSON, ...extra });
  const modules = new Map();
  globals.require = (path) => {
    if (!modules.has(path)) {
      const source = String(path).split('/').reduce((part, name) => (part || {})[name], designDocument);
      if (typeof source !== 'string') throw new Error(`The design document has no module ${path}.`);
      const module = { exports: {} };
      modules.set(path, module);
      vm.runInContext(`(function (module, exports, require) {${source}\n})`, globals)(
        module, module.exports, globals.require);
    }
    return modules.get(path).exports;
  };
  return globals;
}

/** Compile the source of one function; `what` names it in the error. */
function compile(source, globals, what) {
  let compiled;
  try {
    compiled = vm.runInContext(`(${String(source).trim().replace(/;+$/, '')}\n)`, globals);
  } catch (error) {
    throw new CouchError(400, 'compilation_error',
      `Compilation of the ${what} failed: ${error.name}: ${error.message} (${source})`);
  }
  if (typeof compiled !== 'function') {
    throw new CouchError(400, 'compilation_error', `Expression does not eval to a function. (${source})`);
  }
  return compiled;
}

module.exports = { compile, context };
