// A relay as a careful team would write it: takes messages with SKIP LOCKED, posts them, signed and several at a time, and marks them; what failed is tried again later.
// Any number of them may run. Somebody must start it again when it dies; it ends when its standard input does, so that it does not outlive whoever that is.
//
//   node relay.js DATABASE
const crypto = require('node:crypto');
const { setTimeout: sleep } = require('node:timers/promises');
const { Pool } = require('pg');
const { Agent, request } = require('undici');

const workers = 4;
const batch = 100;
const timeout = 1000;
const kept = '1 minute';

const receivers = new Agent({ connections: 20, pipelining: 1 });
const db = new Pool({ host: process.env.PGHOST, port: +process.env.PGPORT, user: process.env.PGUSER, database: process.argv[2], application_name: 'relay', max: workers + 1 });
db.on('error', () => {});                                          // an idle connection was lost; the pool makes another
db.on('connect', (client) => client.on('error', () => {}));        // one in use: its query fails, and says so

let ending = false;
process.on('SIGTERM', () => { ending = true; });                   // after what is under way
process.stdin.on('end', () => process.exit(1)).resume();

function signature(message, at, body) {
  const secret = Buffer.from(message.secret.replace(/^whsec_/, ''), 'base64');
  return 'v1,' + crypto.createHmac('sha256', secret).update(`${message.id}.${at}.${body}`).digest('base64');
}

// Whether it was delivered; if not, in how many seconds to try again.
async function post(message) {
  const body = JSON.stringify(message.payload);
  const at = Math.floor(Date.now() / 1000);
  let wait = Math.min(1, 0.05 * 2 ** Math.min(message.attempts, 10)) * (0.8 + 0.4 * Math.random());
  try {
    const reply = await request(message.url, {
      method: 'POST', dispatcher: receivers, signal: AbortSignal.timeout(timeout), body,
      headers: { 'content-type': 'application/json', 'webhook-id': message.id, 'webhook-timestamp': at, 'webhook-signature': signature(message, at, body) },
    });
    await reply.body.dump();
    if (reply.statusCode >= 200 && reply.statusCode < 300) return { seq: message.seq, delivered: true };
    if (+reply.headers['retry-after'] > wait) wait = +reply.headers['retry-after'];
  } catch {
    // no connection, no answer, half an answer
  }
  return { seq: message.seq, delivered: false, wait };
}

// Takes, posts and marks some; says how many.
async function turn() {
  const client = await db.connect();
  let failure;
  try {
    await client.query('BEGIN');
    const { rows } = await client.query({ name: 'take', text: `
      SELECT m.seq, m.id, m.payload, m.attempts, d.url, d.secret
      FROM outbox.message m JOIN outbox.destination d ON d.name = m.destination
      WHERE m.sent_at IS NULL AND m.next_attempt_at <= now() ORDER BY m.seq LIMIT ${batch} FOR UPDATE OF m SKIP LOCKED` });
    const outcomes = await Promise.all(rows.map(post));
    const sent = outcomes.filter((outcome) => outcome.delivered);
    const failed = outcomes.filter((outcome) => !outcome.delivered);
    if (sent.length > 0) {
      await client.query({ name: 'mark', text: 'UPDATE outbox.message SET sent_at = now(), attempts = attempts + 1 WHERE seq = ANY ($1)', values: [sent.map((one) => one.seq)] });
    }
    if (failed.length > 0) {
      await client.query({ name: 'later', text: `
        UPDATE outbox.message m SET attempts = m.attempts + 1, next_attempt_at = clock_timestamp() + f.wait * interval '1 s'
        FROM unnest($1::bigint[], $2::float8[]) AS f (seq, wait) WHERE m.seq = f.seq`, values: [failed.map((one) => one.seq), failed.map((one) => one.wait)] });
    }
    await client.query('COMMIT');
    return rows.length;
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    client.release(failure);                                       // a connection in an unknown state is not used again
  }
}

// Again and again; an error costs a tenth of a second.
async function keepOn(task, idle) {
  while (!ending) {
    try {
      if (await task() === 0) await sleep(idle);
    } catch (error) {
      console.log(new Date().toISOString(), error.message);
      await sleep(100);
    }
  }
}

async function forget() {
  return (await db.query(`DELETE FROM outbox.message WHERE seq IN (SELECT seq FROM outbox.message WHERE sent_at < now() - interval '${kept}' ORDER BY sent_at LIMIT 1000)`)).rowCount;
}

Promise.all([...Array.from({ length: workers }, () => keepOn(turn, 10)), keepOn(forget, 500)]).then(() => process.exit(0));
