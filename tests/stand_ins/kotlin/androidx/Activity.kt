// Signatures of androidx.activity 1.10 and androidx.lifecycle that the app uses.
package androidx.activity

import androidx.activity.result.ActivityResultLauncher
import androidx.activity.result.contract.ActivityResultContracts
import androidx.lifecycle.LifecycleOwner

open class ComponentActivity : android.app.Activity(), LifecycleOwner {
    fun registerForActivityResult(
        contract: ActivityResultContracts.RequestPermission, callback: (Boolean) -> Unit
    ): ActivityResultLauncher<String> = ActivityResultLauncher()
}
