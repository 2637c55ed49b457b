// Does what an application would with the functions that doc/drivers.md shows for node-postgres, for the orders from argument 3 to argument 4.  Argument 2: that file.
const assert = require('node:assert');
const fs = require('node:fs');
const { Client } = require('pg');

const [, code] = fs.readFileSync(process.argv[2], 'utf8').match(/^## node-postgres$.*?^```js\n(.*?)^```$/ms);
const { pay, receive, work } = new Function('require', `${code}; return { pay, receive, work };`)(require);
const [first, last] = process.argv.slice(3).map(Number);

async function main() {
  const client = new Client();
  await client.connect();

  // paid once
  const ids = [];
  for (let order = first; order <= last; order++) ids.push(await pay(client, order));
  for (let order = first; order <= last; order++) assert.strictEqual(await pay(client, order), null);
  assert.strictEqual(new Set(ids.filter(Boolean)).size, last - first + 1);

  // received once; what failed is not received
  await assert.rejects(receive(client, ids[0], { order: 'none' }));
  for (let i = 0; i < 2; i++) await receive(client, ids[0], { order: first });

  // the others are pulled
  const give_up = Date.now() + 60000;
  const count = 'SELECT count(*) = $2::bigint - $1::bigint + 1 AS done FROM invoice WHERE order_id BETWEEN $1 AND $2';
  while (!(await client.query(count, [first, last])).rows[0].done) {
    assert.ok(Date.now() < give_up, 'events to pull');
    await work(client);
  }
  await client.end();
}

main().catch((error) => { console.error(error); process.exit(1); });
