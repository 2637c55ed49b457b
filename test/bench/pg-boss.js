// pg-boss as a sender of webhooks: a job per event, fetched a hundred at a time.   node pg-boss.js DATABASE URL CONNECTIONS EVENTS   prints events per second
const PgBoss = require('pg-boss');
const undici = require('undici');

const [database, url, connections, total] = process.argv.slice(2);
const receiver = new undici.Pool(new URL(url).origin, { connections: +connections, pipelining: 1 });
const payload = { order_id: 12345, amount: 99.95, currency: 'EUR', customer: { id: 777, email: 'someone@example.com' }, lines: [{ sku: 'A-1', qty: 2 }, { sku: 'B-7', qty: 10 }] };

(async () => {
  const boss = new PgBoss({ host: process.env.PGHOST, port: +process.env.PGPORT, user: process.env.PGUSER, database, max: 10, supervise: false, schedule: false });
  boss.on('error', (error) => { console.error(error.message); process.exit(1); });
  await boss.start();
  await boss.createQueue('push');
  for (let made = 0; made < +total; made += 1000) await boss.insert(Array.from({ length: Math.min(1000, +total - made) }, () => ({ name: 'push', data: payload })));
  let delivered = 0;
  const began = Date.now();
  // Its own poller waits half a second at least: fetch() and complete() are what it can do
  await Promise.all(Array.from({ length: 4 }, async () => {
    for (;;) {
      const jobs = await boss.fetch('push', { batchSize: 100 });
      if (!jobs || jobs.length === 0) return;
      await Promise.all(jobs.map(async (job) => {
        const reply = await receiver.request({ path: '/', method: 'POST', body: JSON.stringify(job.data), headers: { 'content-type': 'application/json' } });
        await reply.body.dump();
      }));
      await boss.complete('push', jobs.map((job) => job.id));
      delivered += jobs.length;
    }
  }));
  if (delivered < +total) throw new Error(`${delivered} of ${total} were delivered`);
  console.log(Math.round(delivered / ((Date.now() - began) / 1000)));
  process.exit(0);
})().catch((error) => { console.error(error.message); process.exit(1); });
