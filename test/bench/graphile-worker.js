// graphile-worker as a sender of webhooks: a job per event.   node graphile-worker.js DATABASE URL CONNECTIONS EVENTS   prints events per second
const { run, runMigrations } = require('graphile-worker');
const { Pool } = require('pg');
const undici = require('undici');

const [database, url, connections, total] = process.argv.slice(2);
const db = new Pool({ host: process.env.PGHOST, port: +process.env.PGPORT, user: process.env.PGUSER, database, max: 20 });
const receiver = new undici.Pool(new URL(url).origin, { connections: +connections, pipelining: 1 });
const payload = JSON.stringify({ order_id: 12345, amount: 99.95, currency: 'EUR', customer: { id: 777, email: 'someone@example.com' }, lines: [{ sku: 'A-1', qty: 2 }, { sku: 'B-7', qty: 10 }] });
const quiet = new (require('graphile-worker').Logger)(() => () => {});

(async () => {
  await runMigrations({ pgPool: db, logger: quiet });
  await db.query(`SELECT count(graphile_worker.add_job('push', $1::json)) FROM generate_series(1, $2)`, [payload, +total]);
  await db.query('ANALYZE');
  let delivered = 0;
  let done;
  const all = new Promise((resolve) => { done = resolve; });
  const began = Date.now();
  await run({ pgPool: db, concurrency: +connections, pollInterval: 100, noHandleSignals: true, logger: quiet,
    preset: { worker: { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
    taskList: { push: async (event) => {
      const reply = await receiver.request({ path: '/', method: 'POST', body: JSON.stringify(event), headers: { 'content-type': 'application/json' } });
      await reply.body.dump();
      if (++delivered >= +total) done();
    } } });
  await all;
  console.log(Math.round(delivered / ((Date.now() - began) / 1000)));
  process.exit(0);
})().catch((error) => { console.error(error.message); process.exit(1); });
