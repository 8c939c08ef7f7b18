'use strict';
// Functions of design documents: compiled once, with a separate context for each design document.

const vm = require('node:vm');
const { CouchError } = require('./errors');

function log() {}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/** The context in which functions of `designDocument` run; `extra` has additional globals, such as emit. */
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

/** Compile the source of one function; `what` is its name in errors. */
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
