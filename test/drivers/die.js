// Loaded before a receiver (node --require): kills it as if by kill -9, the first time it comes to the point that DIE_AT names, and says so before.
const fs = require('node:fs');
const http = require('node:http');
const { Client } = require('pg');
const { Webhook } = require('standardwebhooks');

function die(point) {
  if (process.env.DIE_AT !== point) return;
  fs.writeSync(1, `dies: ${point}\n`);
  process.kill(process.pid, 'SIGKILL');
}

const { verify } = Webhook.prototype;
Webhook.prototype.verify = function (...values) {
  die('before it verifies');
  return verify.apply(this, values);
};

const { query } = Client.prototype;
Client.prototype.query = function (text, ...values) {
  const commit = text === 'COMMIT';
  if (commit) die('before it commits');
  const result = query.call(this, text, ...values);
  if (commit) die('while it commits');
  return result.then((done) => {
    if (/outbox\.accept/.test(text)) die('after it accepted');
    if (commit) die('before it answers');
    return done;
  });
};

const { end } = http.ServerResponse.prototype;
http.ServerResponse.prototype.end = function (...values) {
  this.on('finish', () => die('after it answered'));
  return end.apply(this, values);
};
