// The payment service:  node pay.js ORDER…
const { pool, transaction } = require('./database');

// Marks an order paid, says so in an event, and takes the money. All of it happens, or nothing.
const pay = (id) => transaction(async (client) => {
  const { rows: [order] } = await client.query(
    'UPDATE orders SET paid_at = now() WHERE id = $1 AND paid_at IS NULL RETURNING id, candidate, amount', [id]);
  if (!order) throw new Error('there is no such order to pay');

  await client.query(
    "SELECT outbox.enqueue('PaymentCompleted', $1::jsonb, key => $2::text)",
    [{ order: order.id, candidate: order.candidate, amount: order.amount }, order.id]);

  // The event is recorded already. If there is too little credit, this fails, and there never was an event.
  await client.query('UPDATE candidate SET credit = credit - $1 WHERE name = $2', [order.amount, order.candidate]);
});

async function main() {
  for (const id of process.argv.slice(2)) {
    try {
      await pay(id);
      console.log(`order ${id}: paid`);
    } catch (error) {
      console.log(`order ${id}: not paid: ${error.message}`);
    }
  }
  await pool.end();
}

main();
