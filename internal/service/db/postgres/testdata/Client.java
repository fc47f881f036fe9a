import java.sql.*;

/** What programs of the Java world do with a database, through PostgreSQL's own driver. */
public class Client {
    public static void main(String[] args) throws Exception {
        try (Connection c = DriverManager.getConnection(args[0])) {
            try (Statement s = c.createStatement()) {
                s.execute("create table jdbc (id int primary key, name text)");
            }
            c.setAutoCommit(false);
            try (PreparedStatement p = c.prepareStatement("insert into jdbc values (?, ?)")) {
                for (int i = 0; i < 1000; i++) {
                    p.setInt(1, i);
                    p.setString(2, "name " + i);
                    p.addBatch();
                }
                p.executeBatch();
            }
            c.commit();
            int n = 0;
            try (PreparedStatement p = c.prepareStatement("select id, name from jdbc where id >= ? order by id")) {
                p.setFetchSize(10);
                p.setInt(1, 0);
                try (ResultSet r = p.executeQuery()) {
                    while (r.next()) {
                        if (!r.getString(2).equals("name " + n++)) {
                            throw new Exception("row " + n + " is " + r.getString(2));
                        }
                    }
                }
            }
            for (int i = 0; i < 20; i++) {
                // After five times the driver prepares on the server, and sends binary.
                try (PreparedStatement p = c.prepareStatement("select name from jdbc where id = ?")) {
                    p.setInt(1, i);
                    p.executeQuery().close();
                }
            }
            c.commit();
            try (PreparedStatement p = c.prepareStatement("insert into jdbc values (?, ?)")) {
                p.setInt(1, 1);
                p.setString(2, "twice");
                p.executeUpdate();
                throw new Exception("a key is there twice");
            } catch (SQLException e) {
                if (!"23505".equals(e.getSQLState())) {
                    throw e;
                }
            }
            c.rollback();
            System.out.println("done " + n);
        }
    }
}
