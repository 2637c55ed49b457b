// What a user would write instead: an outbox table and a relay that takes rows with SKIP LOCKED, posts them, and marks them.
//
//   node relay.js DATABASE URL CONNECTIONS EVENTS      until so many are done; prints events per second
//   node relay.js DATABASE URL CONNECTIONS             until it is stopped; polls every 5 ms when there is nothing
const { Pool } = require('pg');
const undici = require('undici');

const [database, url, connections, total] = process.argv.slice(2);
const workers = 4;
const db = new Pool({ host: process.env.PGHOST, port: +process.env.PGPORT, user: process.env.PGUSER, database, max: workers });
const receiver = new undici.Pool(new URL(url).origin, { connections: +connections, pipelining: 1 });
const wanted = total ? +total : Infinity;
let delivered = 0;

async function relay() {
  while (delivered < wanted) {
    const client = await db.connect();
    await client.query('BEGIN');
    const { rows } = await client.query({ name: 'take', text: `SELECT id, event_type, event_data FROM typical_outbox WHERE status = 'PENDING'
        ORDER BY created_at LIMIT 100 FOR UPDATE SKIP LOCKED` });
    const sent = await Promise.all(rows.map(async (event) => {
      const reply = await receiver.request({ path: '/', method: 'POST', body: JSON.stringify(event.event_data),
        headers: { 'content-type': 'application/json', 'webhook-id': event.id } });
      await reply.body.dump();
      return event.id;
    }));
    if (sent.length > 0) await client.query({ name: 'mark', text: `UPDATE typical_outbox SET status = 'PROCESSED' WHERE id = ANY ($1)`, values: [sent] });
    await client.query('COMMIT');
    client.release();
    if (sent.length === 0) await new Promise((done) => setTimeout(done, 5));
    delivered += sent.length;
  }
}

(async () => {
  const began = Date.now();
  await Promise.all(Array.from({ length: workers }, relay));
  console.log(Math.round(delivered / ((Date.now() - began) / 1000)));
  process.exit(0);
})().catch((error) => { console.error(error.message); process.exit(1); });
