'use strict';
// Authentication and authorization: server admins of the configuration, users of `_users`, basic and cookie
// authentication, and the `_security` of each database.

const crypto = require('node:crypto');
const { promisify } = require('node:util');

const { forbidden, unauthorized } = require('./errors');

const pbkdf2 = promisify(crypto.pbkdf2);
const ITERATIONS = 10000; // CouchDB's 600,000 would take 0.5 s per user in tests
const SESSION = 600; // seconds
const USER = 'org.couchdb.user:';
const WRONG = 'Name or password is incorrect.';

async function derivedKey(password, salt, iterations) {
  return (await pbkdf2(String(password), salt, iterations, 32, 'sha256')).toString('hex');
}

/** A document of `_users` with its password replaced by a salted hash. */
async function withHashedPassword(doc) {
  if (doc.password === undefined || doc.password === null) return doc;
  const { password, ...rest } = doc;
  const salt = crypto.randomBytes(16).toString('hex');
  return {
    ...rest,
    password_scheme: 'pbkdf2',
    pbkdf2_prf: 'sha256',
    iterations: ITERATIONS,
    salt,
    derived_key: await derivedKey(password, salt, ITERATIONS),
  };
}

function equal(a, b) {
  const [left, right] = [a, b].map((text) => crypto.createHash('sha256').update(String(text)).digest());
  return crypto.timingSafeEqual(left, right);
}

class Authentication {
  #admins;
  #databases;
  #secret = crypto.randomBytes(32);
  #verified = new Set(); // hashes of logins that were verified, since hashing a password is deliberately slow

  /** `admins` is {name: password}. */
  constructor(admins, databases) {
    this.#admins = admins;
    this.#databases = databases;
  }

  async #user(name) {
    return this.#databases.get('_users').pouch.get(USER + name).catch((error) => {
      if (error.status === 404) return null;
      throw error;
    });
  }

  /** {name, roles} of a user, if the password is correct; throws 401 otherwise. */
  async login(name, password) {
    if (Object.hasOwn(this.#admins, name)) {
      if (!equal(password, this.#admins[name])) throw unauthorized(WRONG);
      return { name, roles: ['_admin'] };
    }
    const user = await this.#user(name);
    if (!user?.salt) throw unauthorized(WRONG);
    const mark = crypto.createHash('sha256').update(JSON.stringify([user._rev, name, password])).digest('hex');
    if (!this.#verified.has(mark)) {
      if (!equal(await derivedKey(password, user.salt, user.iterations), user.derived_key)) throw unauthorized(WRONG);
      this.#verified.add(mark);
    }
    return { name, roles: user.roles || [] };
  }

  #sign(text) {
    return crypto.createHmac('sha256', this.#secret).update(text).digest('base64url');
  }

  /** The value of Set-Cookie that begins a session. */
  cookie(name) {
    const content = `${Buffer.from(name).toString('base64url')}:${Math.floor(Date.now() / 1000)}`;
    return `AuthSession=${content}:${this.#sign(content)}; Version=1; Path=/; HttpOnly; Max-Age=${SESSION}`;
  }

  /** {name, roles} of the session in a Cookie header, or null. */
  async session(header) {
    const parts = /(?:^|;\s*)AuthSession="?([^:;"]+):(\d+):([^;"]+)/.exec(header);
    if (!parts || !equal(this.#sign(`${parts[1]}:${parts[2]}`), parts[3])) return null;
    if (Date.now() / 1000 - Number(parts[2]) > SESSION) return null;
    const name = Buffer.from(parts[1], 'base64url').toString();
    if (Object.hasOwn(this.#admins, name)) return { name, roles: ['_admin'] };
    const user = await this.#user(name);
    return user && { name, roles: user.roles || [] };
  }

  /** Express middleware: sets req.user to {name, roles} (name null without a login), and req.handler to the method. */
  middleware() {
    return async (req, res, next) => {
      const { authorization = '', cookie = '' } = req.headers;
      req.user = { name: null, roles: [] };
      req.handler = undefined;
      if (/^basic /i.test(authorization)) {
        const [name, ...password] = Buffer.from(authorization.slice('basic '.length), 'base64').toString().split(':');
        req.user = await this.login(name, password.join(':'));
        req.handler = 'default';
      } else if (cookie) {
        const user = await this.session(cookie);
        if (user) {
          req.user = user;
          req.handler = 'cookie';
          res.set('Set-Cookie', this.cookie(user.name));
        }
      }
      next();
    };
  }
}

const isServerAdmin = (user) => user.roles.includes('_admin');

function named(group, user) {
  return (group?.names || []).includes(user.name) || (group?.roles || []).some((role) => user.roles.includes(role));
}

const isAdmin = (user, database) => isServerAdmin(user) || named(database.security.admins, user);

function requireServerAdmin(user) {
  if (!isServerAdmin(user)) throw unauthorized('You are not a server admin.');
}

function requireAdmin(user, database) {
  if (!isAdmin(user, database)) throw unauthorized('You are not a db or server admin.');
}

/** Throws 401 without a login, and 403 for a user who is neither a member nor an admin of the database. */
function requireMember(user, database) {
  const { members } = database.security;
  const everybody = !(members?.names || []).length && !(members?.roles || []).length;
  if (everybody || isAdmin(user, database) || named(members, user)) return;
  if (user.name === null) throw unauthorized('You are not authorized to access this db.');
  throw forbidden('You are not allowed to access this db.');
}

module.exports = { Authentication, isAdmin, requireAdmin, requireMember, requireServerAdmin, withHashedPassword };
