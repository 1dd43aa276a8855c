package android.app;

public class Activity extends android.content.Context {
    protected void onCreate(android.os.Bundle state) { }
    protected void onDestroy() { }
    public <T extends android.view.View> T findViewById(int id) { return null; }
    public void setContentView(android.view.View view) { }
    public android.content.Intent getIntent() { return null; }
    public final void runOnUiThread(Runnable action) { }
}
