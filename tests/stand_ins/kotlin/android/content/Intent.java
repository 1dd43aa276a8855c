package android.content;

public class Intent {
    public Intent(Context context, Class<?> cls) { }
    public boolean getBooleanExtra(String name, boolean otherwise) { return otherwise; }
}
