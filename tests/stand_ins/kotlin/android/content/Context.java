package android.content;

public class Context {
    public android.content.res.AssetManager getAssets() { return new android.content.res.AssetManager(); }
    public java.io.File getNoBackupFilesDir() { return new java.io.File(System.getProperty("files")); }
    public java.io.File getExternalFilesDir(String type) { return getNoBackupFilesDir(); }
    public Context getApplicationContext() { return this; }
    public void startActivity(Intent intent) { }
}
