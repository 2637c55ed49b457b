// What an application does with node-postgres: the documented line, plain, prepared, in transactions.
// Prints a line "committed|rolled back ID" for each event.  Arguments: "prepared" to use named statements too.
const { Client, Pool } = require('pg');

const line = "SELECT outbox.enqueue('order.paid', $1::jsonb, key => $2::text) AS id";
const named = process.argv[2] === 'prepared';

async function main() {
  const client = new Client();
  await client.connect();

  // plain
  let result = await client.query(line, [{ how: 'plain' }, 'node-1']);
  console.log(`committed ${result.rows[0].id}`);

  // as JSON text, and without a key
  result = await client.query(line, [JSON.stringify({ how: 'text' }), null]);
  console.log(`committed ${result.rows[0].id}`);

  if (named) {
    for (let i = 0; i < 10; i++) {
      result = await client.query({ name: 'enqueue', text: line, values: [{ how: 'prepared', i }, 'node-2'] });
      console.log(`committed ${result.rows[0].id}`);
    }
  }

  // in a transaction with a business write; and one that is rolled back
  for (const end of ['COMMIT', 'ROLLBACK']) {
    await client.query('BEGIN');
    await client.query('INSERT INTO orders (note) VALUES ($1)', [end]);
    result = await client.query(line, [{ how: end }, 'node-3']);
    await client.query(end);
    console.log(`${end === 'COMMIT' ? 'committed' : 'rolled back'} ${result.rows[0].id}`);
  }
  await client.end();

  // many clients at once, some of which roll back
  const pool = new Pool({ max: 8 });
  await Promise.all(Array.from({ length: 40 }, async (_, i) => {
    const one = await pool.connect();
    try {
      await one.query('BEGIN');
      const r = await one.query(line, [{ how: 'pool', i }, `pool-${i}`]);
      const end = i % 4 === 0 ? 'ROLLBACK' : 'COMMIT';
      await one.query(end);
      console.log(`${end === 'COMMIT' ? 'committed' : 'rolled back'} ${r.rows[0].id}`);
    } finally {
      one.release();
    }
  }));
  await pool.end();
}

main().catch((error) => { console.error(error); process.exit(1); });
